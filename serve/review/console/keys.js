/** Keys: one table says what they do, and is what the help shows.
 *
 * A binding: {keys, label, run, repeats}. Without `run` it is the browser's own, and only told.
 * `repeats`: holding the key down does it again; a key that is held must not sign two drafts.
 */

import { element } from "./dom.js";

const ARROWS = /^(Shift\+)?Arrow/;

/** The key as tables name it: "a", "W", "?", "ArrowUp", "Shift+ArrowUp". */
function nameOf(event) {
  return event.shiftKey && event.key.length > 1 ? `Shift+${event.key}` : event.key;
}

/** Whether a control takes this key for itself. */
function takes(target, key) {
  if (target.matches("textarea, select")) return true;
  if (!target.matches("input")) return false;
  if (target.type === "radio" || target.type === "range") return ARROWS.test(key);
  return target.type !== "checkbox";
}

/**
 * Runs bindings on keydown.
 *
 * @param {() => Array} current the bindings in force now
 * @param {() => boolean} singleKeys whether keys without Ctrl do anything (WCAG 2.1.4)
 */
export function listen(current, singleKeys) {
  document.addEventListener("keydown", (event) => {
    // On many keyboards [ and ] are AltGr with something, which comes as Ctrl and Alt.
    const command = event.ctrlKey || event.metaKey || event.altKey;
    if (command && !event.getModifierState("AltGraph")) return;
    if (event.isComposing || document.querySelector("dialog[open]")) return;
    const key = nameOf(event);
    if (takes(event.target, key)) {
      // Out of the field, so that keys work again.
      if (key === "Escape") event.target.blur();
      return;
    }
    if (!singleKeys() && key !== "Escape") return;
    const binding = current().find((candidate) => candidate.run && candidate.keys.includes(key));
    if (!binding) return;
    event.preventDefault();
    if (!event.repeat || binding.repeats) binding.run(key);
  });
}

/** What the help shows: a table for each group of bindings. */
export function describe(groups) {
  return Object.entries(groups).map(([title, bindings]) =>
    element(
      "section",
      {},
      element("h3", {}, title),
      element("dl", { className: "keys" }, ...bindings.flatMap(described)),
    ),
  );
}

function described({ keys, label }) {
  const names = keys.map((key) => element("kbd", {}, key.replace("Arrow", "")));
  return [element("dt", {}, ...names), element("dd", {}, label)];
}
