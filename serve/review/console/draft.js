/** What was asked and drafted, as text with findings marked. Changes nothing. */

import { element, shown, words } from "./dom.js";

const SPEAKERS = { system: "Instructed", user: "Asked", assistant: "Answered" };
const STATUSES = ["present", "absent", "indeterminate"];

/** The turns before the draft, the last of which is the question. */
export function turns(item) {
  return item.turns.map(({ role, text }) =>
    element(
      "div",
      {},
      item.turns.length > 1 ? element("strong", {}, SPEAKERS[role]) : "",
      element("p", { className: "text", dir: "auto" }, text),
    ),
  );
}

/** The drafts: one, or as many as were asked for. */
export function drafts(item) {
  return item.draft.map((draft, at) =>
    element(
      "section",
      {},
      item.draft.length > 1 ? element("h4", {}, `Draft ${at + 1}`) : "",
      element("p", { className: "text draft", dir: "auto" }, ...marked(draft)),
      draft.finish_reason === "stop" ? "" : element("p", { className: "hint" }, ending(draft)),
    ),
  );
}

function ending({ finish_reason: reason }) {
  return `Ended by: ${words(reason ?? "failure")}`;
}

/** A text in pieces. Statuses are words and lines as well as colours: for every eye and ear. */
function marked({ text, highlights }) {
  const pieces = [];
  let at = 0;
  for (const { start, end, finding, status } of highlights) {
    if (start < at) continue;
    const known = STATUSES.includes(status) ? status : "indeterminate";
    pieces.push(
      text.slice(at, start),
      element(
        "mark",
        { className: known, title: shown(`${finding}: ${status}`) },
        text.slice(start, end),
        element("span", { className: "unseen" }, ` (${status})`),
      ),
    );
    at = end;
  }
  return [...pieces, text.slice(at)];
}

/** What the rules decided of question and drafts, each once. */
export function rules(item) {
  const verdicts = [...item.request_verdicts, ...item.draft.flatMap((draft) => draft.verdicts)];
  const told = verdicts.map(({ rule, action, stage, finding }) => {
    const about = finding ? `, about ${finding}` : "";
    return `${words(action)}: ${rule}${about}, at ${stage}`;
  });
  const all = [...new Set(told)].map((line) => element("li", {}, line));
  return all.length ? all : [element("li", {}, "No rule fired.")];
}

/** Where the draft comes from. */
export function provenance(item) {
  const { model, policy, audit_id: audit, id, images, created, escalation } = item;
  const facts = {
    Model: Object.values(model).filter(Boolean).join(", "),
    Policy: policy,
    Made: new Date(created * 1000).toISOString(),
    Review: id,
    Audit: audit,
    Images: images.map(imageName).join("; ") || "none",
    Escalation: escalation ? `sent ${escalation.sent}, failed ${escalation.failed} times` : "none",
  };
  return Object.entries(facts).flatMap(([name, value]) => [
    element("dt", {}, name),
    element("dd", {}, value),
  ]);
}

/** An image in words: which, from when, which frame, and what was done to it. */
export function imageName({ index, role, frame, frames, window, burned_in: burned }, _, all) {
  const { center, width } = window ?? {};
  return [
    `Image ${index + 1} of ${all.length}`,
    role,
    frames > 1 && `frame ${frame} of ${frames}`,
    width && `made with level ${center}, window ${width}`,
    burned && burned !== "none" && `burned-in text ${burned}`,
  ]
    .filter(Boolean)
    .join(", ");
}

/** What was done to the item so far. */
export function history(item) {
  return item.history.map(({ action, principal, at }) =>
    element("li", {}, `${new Date(at * 1000).toISOString()} ${words(action)} by ${principal}`),
  );
}

/** How a closed item ended. */
export function outcome(item) {
  const given = item.findings.map(({ finding, verdict }) => `${finding}: ${words(verdict)}`);
  return [
    element("h3", {}, "Outcome"),
    element("p", {}, [words(item.state), ...given].join("; ")),
    item.comment ? element("p", { className: "text", dir: "auto" }, item.comment) : "",
    item.amended ? element("p", { className: "text draft", dir: "auto" }, item.amended) : "",
  ];
}
