/** The image: window, level, zoom, pan. Knows pixels; does not know reviews.
 *
 * Window and level act on the picture's own 8-bit values by a table of 256 entries, at the
 * picture's own size; zoom and pan only draw the result again.
 */

/** The window in which every value is shown as it is. */
export const FULL = Object.freeze({ width: 256, level: 128, inverted: false });

const SCALES = [0.05, 32];
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** What each of the 256 values is shown as: the linear function of DICOM PS3.3 C.11.2.1.2.1. */
export function lookUpTable({ width, level, inverted }) {
  return Uint8ClampedArray.from({ length: 256 }, (_, value) => {
    const grey = ((value - (level - 0.5)) / (width - 1) + 0.5) * 255;
    return inverted ? 255 - grey : grey;
  });
}

/** RGBA pixels through a table, each colour by itself; opacity stays. */
export function applyTable(source, table, target) {
  for (let at = 0; at < source.length; at += 4) {
    target[at] = table[source[at]];
    target[at + 1] = table[source[at + 1]];
    target[at + 2] = table[source[at + 2]];
    target[at + 3] = source[at + 3];
  }
}

/** Where an image of one size stands when it fills a view of another. */
export function fitted(image, view) {
  const scale = Math.min(view.width / image.width, view.height / image.height);
  return centred(image, view, clamp(scale, ...SCALES));
}

/** The same at a scale of one's choice; on whole pixels, so that true size shows true values. */
export function centred(image, view, scale) {
  return {
    scale,
    x: Math.round((view.width - image.width * scale) / 2),
    y: Math.round((view.height - image.height * scale) / 2),
  };
}

/** Closer or farther, with the point at (x, y) of the view staying where it is. */
export function zoomed(place, factor, x, y) {
  const scale = clamp(place.scale * factor, ...SCALES);
  const grown = scale / place.scale;
  return { scale, x: x - (x - place.x) * grown, y: y - (y - place.y) * grown };
}

/**
 * A picture's values, exactly as the file has them.
 *
 * @throws {Error} the browser alters what is read from a canvas (some do, against fingerprinting)
 */
export async function decode(blob) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(blob, options);
  const surface = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = surface.getContext("2d", { willReadFrequently: true });
  requireExact(context);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, surface.width, surface.height);
}

function requireExact(context) {
  const { width, height } = context.canvas;
  const probe = new ImageData(Math.min(16, width), Math.min(16, height));
  probe.data.forEach((_, at) => (probe.data[at] = at % 4 === 3 ? 255 : (at * 7) % 256));
  context.putImageData(probe, 0, 0);
  const read = context.getImageData(0, 0, probe.width, probe.height).data;
  if (read.some((value, at) => value !== probe.data[at])) {
    throw new Error("This browser alters images that a page reads. Use one that does not.");
  }
  context.clearRect(0, 0, width, height);
}

/**
 * A canvas that shows pictures.
 *
 * @param {HTMLCanvasElement} canvas its size on the page is the style sheet's
 * @param {() => void} changed called after every change of window or place
 */
export function createViewer(canvas, changed) {
  const view = canvas.getContext("2d", { alpha: false });
  let pixels = null; // ImageData: the picture's values
  let shown = null; // ImageData: through the table
  let surface = null; // `shown`, as something that can be drawn scaled
  let scene = null; // {window, place}; a place of null: fitted
  let due = 0;

  const place = () => scene.place ?? fitted(pixels, canvas);

  function applyWindow() {
    applyTable(pixels.data, lookUpTable(scene.window), shown.data);
    surface.getContext("2d").putImageData(shown, 0, 0);
  }

  function draw() {
    cancelAnimationFrame(due);
    due = 0;
    view.resetTransform();
    view.clearRect(0, 0, canvas.width, canvas.height);
    if (!pixels) return;
    const { scale, x, y } = place();
    view.setTransform(scale, 0, 0, scale, x, y);
    // Close up a reader wants to see the pixels that there are.
    view.imageSmoothingEnabled = scale < 4;
    view.imageSmoothingQuality = scale < 1 ? "medium" : "low";
    view.drawImage(surface, 0, 0);
  }

  function later() {
    due ||= requestAnimationFrame(draw);
    changed();
  }

  function move(next) {
    if (!pixels) return;
    scene.place = next;
    later();
  }

  const viewer = {
    draw,
    get scale() {
      return pixels ? place().scale : 1;
    },
    get window() {
      return scene?.window ?? FULL;
    },
    /** Shows a picture as it was left: a scene is `{}` at first, and keeps window and place. */
    show(picture, kept = {}) {
      pixels = picture;
      scene = kept;
      if (!pixels) return later();
      scene.window ??= FULL;
      scene.place ??= null;
      shown = new ImageData(pixels.width, pixels.height);
      surface = new OffscreenCanvas(pixels.width, pixels.height);
      surface.getContext("2d", { willReadFrequently: true });
      applyWindow();
      later();
    },
    /** Sets width, level or inverted; what is not named stays. */
    setWindow(change) {
      if (!pixels) return;
      const { width, level, inverted } = { ...scene.window, ...change };
      scene.window = { width: clamp(width, 2, 512), level: clamp(level, 0, 256), inverted };
      applyWindow();
      later();
    },
    zoom: (factor, x = canvas.width / 2, y = canvas.height / 2) =>
      move(pixels && zoomed(place(), factor, x, y)),
    pan(dx, dy) {
      if (!pixels) return;
      const { scale, x, y } = place();
      move({ scale, x: x + dx, y: y + dy });
    },
    fit: () => move(null),
    /** One pixel of the picture is one of the screen. */
    trueSize: () => move(pixels && centred(pixels, canvas, 1)),
  };
  followPointer(canvas, viewer);
  followSize(canvas, later);
  return viewer;
}

function followPointer(canvas, viewer) {
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    const { movementX: dx, movementY: dy } = event;
    if (event.shiftKey || event.buttons !== 1) {
      viewer.pan(dx * devicePixelRatio, dy * devicePixelRatio);
    } else {
      // As on workstations: to the right a wider window, down a higher level, which is darker.
      const { width, level } = viewer.window;
      viewer.setWindow({ width: width + dx, level: level + dy });
    }
  });
  const zoomByWheel = (event) => {
    event.preventDefault();
    const { offsetX, offsetY, deltaY } = event;
    const factor = Math.exp(-deltaY * 0.0015);
    viewer.zoom(factor, offsetX * devicePixelRatio, offsetY * devicePixelRatio);
  };
  canvas.addEventListener("wheel", zoomByWheel, { passive: false });
}

function followSize(canvas, later) {
  new ResizeObserver(() => {
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * devicePixelRatio));
    later();
  }).observe(canvas);
}
