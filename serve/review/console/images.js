/** The light box: which image, and the tools around it. */

import { byId, shown } from "./dom.js";
import { imageName } from "./draft.js";
import { createViewer, decode, FULL } from "./viewer.js";

const STEP = 8; // grey values, for a key
const ZOOM = 1.25;
const PAN = 40; // pixels, for a key

/** @param {(id: string, index: number) => Promise<Blob>} fetchImage where images come from */
export function createImages(fetchImage) {
  const viewer = createViewer(byId("canvas"), tell);
  let item = null;
  let at = 0;
  let pictures = new Map(); // of the item: each is fetched once, since every look is recorded
  let scenes = [];

  function tell() {
    const { width, level, inverted } = viewer.window;
    byId("width").value = byId("width-value").value = Math.round(width);
    byId("level").value = byId("level-value").value = Math.round(level);
    byId("invert").ariaPressed = String(inverted);
    byId("zoom-value").value = `${Math.round(viewer.scale * 100)} %`;
  }

  function problem(text) {
    byId("image-problem").hidden = !text;
    byId("image-problem").textContent = shown(text);
  }

  function waiting(whether) {
    byId("canvas").ariaBusy = String(whether);
  }

  async function go(to) {
    const images = item.images;
    at = Math.min(images.length - 1, Math.max(0, to));
    const name = images.length ? imageName(images[at], at, images) : "No image";
    byId("image-name").textContent = byId("canvas").ariaLabel = shown(name);
    viewer.show(null);
    problem("");
    waiting(images.length > 0);
    if (!images.length) return;
    const [asked, index] = [item, at];
    if (!pictures.has(index)) {
      pictures.set(index, fetchImage(item.id, images[index].index).then(decode));
    }
    try {
      const picture = await pictures.get(index);
      if (asked.id !== item?.id || index !== at) return;
      viewer.show(picture, (scenes[index] ??= {}));
    } catch (error) {
      if (asked.id !== item?.id || error.name === "AbortError") return;
      pictures.delete(index);
      if (index !== at) return;
      problem(`The image is not shown. ${error.message}`);
    }
    waiting(false);
  }

  const change = (by) => {
    const { width, level } = viewer.window;
    viewer.setWindow({ width: width + (by.width ?? 0), level: level + (by.level ?? 0) });
  };
  const invert = () => viewer.setWindow({ inverted: !viewer.window.inverted });
  const reset = () => viewer.setWindow(FULL);

  byId("width").oninput = (event) => viewer.setWindow({ width: event.target.valueAsNumber });
  byId("level").oninput = (event) => viewer.setWindow({ level: event.target.valueAsNumber });
  byId("reset").onclick = reset;
  byId("invert").onclick = invert;
  byId("zoom-in").onclick = () => viewer.zoom(ZOOM);
  byId("zoom-out").onclick = () => viewer.zoom(1 / ZOOM);
  byId("fit").onclick = viewer.fit;
  byId("true-size").onclick = viewer.trueSize;
  byId("image-before").onclick = () => go(at - 1);
  byId("image-after").onclick = () => go(at + 1);

  const held = (keys, label, run) => ({ keys, label, run, repeats: true });
  return {
    /** Shows an item's images, or none. */
    show(shownItem) {
      item = shownItem;
      pictures = new Map();
      scenes = [];
      if (item) go(0);
      else viewer.show(null);
    },
    /** The same item, read anew. */
    keep(shownItem) {
      item = shownItem;
    },
    keys: [
      held(["Shift+ArrowLeft"], "Narrower window: more contrast", () => change({ width: -STEP })),
      held(["Shift+ArrowRight"], "Wider window", () => change({ width: STEP })),
      held(["Shift+ArrowUp"], "Lower level: brighter", () => change({ level: -STEP })),
      held(["Shift+ArrowDown"], "Higher level: darker", () => change({ level: STEP })),
      { keys: ["0"], label: "Values as they are", run: reset },
      { keys: ["i"], label: "Invert", run: invert },
      held(["+", "="], "Closer", () => viewer.zoom(ZOOM)),
      held(["-"], "Farther", () => viewer.zoom(1 / ZOOM)),
      { keys: ["f"], label: "Fit", run: viewer.fit },
      { keys: ["t"], label: "True size: a pixel is a pixel", run: viewer.trueSize },
      held(["ArrowLeft"], "See what is left", () => viewer.pan(PAN, 0)),
      held(["ArrowRight"], "See what is right", () => viewer.pan(-PAN, 0)),
      held(["ArrowUp"], "See what is above", () => viewer.pan(0, PAN)),
      held(["ArrowDown"], "See what is below", () => viewer.pan(0, -PAN)),
      { keys: ["["], label: "Previous image", run: () => go(at - 1) },
      { keys: ["]"], label: "Next image", run: () => go(at + 1) },
    ],
  };
}
