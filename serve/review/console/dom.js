/** Elements and words. Text becomes text nodes, never markup. */

// They turn the order of what is read around: "no pneumothorax" could be made to look otherwise.
const DECEIVING =
  /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;

/** An element by its id; the page has all of them from the start. */
export function byId(id) {
  return document.getElementById(id);
}

/** An element with properties and children; strings become text, as `shown`. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.map((child) => (child instanceof Node ? child : shown(child))));
  return made;
}

/** The text with characters that deceive the eye made visible, such as ‹U+202E›. */
export function shown(value) {
  return String(value ?? "").replace(
    DECEIVING,
    (found) => `‹U+${found.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}›`,
  );
}

/** The text without them, for a field that it is edited in. */
export function plain(value) {
  return String(value ?? "").replace(DECEIVING, "");
}

/** A term for people: `signed_off` as "signed off". */
export function words(term) {
  return String(term ?? "").replaceAll("_", " ");
}

/** Seconds as a reader counts them: 40 s, 12 min, 3 h, 2 d. */
export function duration(seconds) {
  const steps = [
    [86_400, "d"],
    [3_600, "h"],
    [60, "min"],
  ];
  const [size, unit] = steps.find(([size]) => seconds >= size) ?? [1, "s"];
  return `${Math.max(0, Math.floor(seconds / size))} ${unit}`;
}
