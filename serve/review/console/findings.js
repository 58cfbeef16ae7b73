/** The clinician's verdict on each finding. Knows the form; does not know the service. */

import { byId, element, words } from "./dom.js";

const KEYS = { agree: "a", overcall: "o", wrong_side: "w", missed: "" };
// What can be true of a finding that a draft calls so; the service takes no other.
const POSSIBLE = {
  present: ["agree", "overcall", "wrong_side"],
  indeterminate: ["agree", "overcall", "wrong_side", "missed"],
  absent: ["agree", "missed"],
};
const STRONGEST = Object.keys(POSSIBLE);

/** The drafts' findings, each once, with what they say of it; what is said to be there first. */
export function findingsOf(item) {
  const said = new Map();
  for (const { findings } of item.draft) {
    for (const { finding, status } of findings) {
      said.set(finding, [...new Set([...(said.get(finding) ?? []), status])]);
    }
  }
  const rank = ([, statuses]) => STRONGEST.findIndex((status) => statuses.includes(status));
  return new Map([...said].sort((one, other) => rank(one) - rank(other)));
}

/** The form. `changed` is called after each verdict that a person gives. */
export function createFindings(changed) {
  let said = new Map(); // finding: statuses
  let verdicts = new Map(); // finding: verdict, for those that have one
  let selected = 0;

  const names = () => [...new Set([...said.keys(), ...verdicts.keys()])];

  function render() {
    const all = names();
    const none = element("p", { className: "hint" }, "The draft names none.");
    byId("findings").replaceChildren(...(all.length ? all.map(row) : [none]));
    byId("missed-names").replaceChildren(...all.map((value) => element("option", { value })));
    select(Math.min(selected, Math.max(0, all.length - 1)));
  }

  function possible(finding) {
    const statuses = said.get(finding) ?? [];
    return POSSIBLE[STRONGEST.find((status) => statuses.includes(status))] ?? ["missed"];
  }

  function row(finding, at) {
    const status = said.get(finding)?.join(" or ") ?? "not in the draft";
    const choices = possible(finding).map((verdict) => {
      const radio = element("input", {
        type: "radio",
        name: `finding-${at}`,
        value: verdict,
        checked: verdicts.get(finding) === verdict,
        onfocus: () => select(at),
        onchange: () => set(finding, verdict),
      });
      const key = KEYS[verdict] ? element("kbd", {}, KEYS[verdict]) : "";
      return element("label", {}, radio, ` ${words(verdict)} `, key);
    });
    if (!said.has(finding)) {
      const onclick = () => remove(finding);
      choices.push(element("button", { type: "button", onclick }, "Remove"));
    }
    const number = at < 9 ? element("kbd", {}, at + 1) : "";
    const legend = element("legend", {}, number, ` ${finding}: ${status}`);
    return element("fieldset", { onclick: () => select(at) }, legend, ...choices);
  }

  function remove(finding) {
    verdicts.delete(finding);
    render();
    byId("missed").focus();
  }

  function select(at) {
    const rows = [...byId("findings").querySelectorAll("fieldset")];
    if (!rows[at]) return;
    selected = at;
    rows.forEach((fieldset, number) => {
      fieldset.classList.toggle("selected", number === at);
      fieldset.ariaCurrent = String(number === at);
    });
    rows[at].scrollIntoView({ block: "nearest" });
  }

  function set(finding, verdict) {
    verdicts.set(finding, verdict);
    changed(finding, verdict);
  }

  return {
    /** Shows those of an item; `given` is a map that verdicts are kept in. */
    show(item, given) {
      said = findingsOf(item);
      verdicts = given;
      selected = 0;
      render();
    },
    select,
    step: (by) => select(selected + by),
    /** A verdict on the selected finding, if it can be true of it. */
    give(verdict) {
      const finding = names()[selected];
      if (finding === undefined || !possible(finding).includes(verdict)) return;
      const name = `finding-${selected}`;
      document.querySelector(`input[name="${name}"][value="${verdict}"]`).checked = true;
      set(finding, verdict);
    },
    /** A finding that the draft does not have, or has as absent. */
    addMissed(text) {
      const finding = text.trim().toLowerCase();
      if (!possible(finding).includes("missed")) return false;
      set(finding, "missed");
      selected = names().indexOf(finding);
      render();
      return true;
    },
    agreeWithAll() {
      for (const finding of said.keys()) verdicts.set(finding, "agree");
      render();
    },
    get onlyAgreement() {
      return [...verdicts.values()].every((verdict) => verdict === "agree");
    },
    get given() {
      return [...verdicts].map(([finding, verdict]) => ({ finding, verdict }));
    },
  };
}
