/** One review: what is shown of it, and what a clinician does. */

import { byId, duration, plain, shown, words } from "./dom.js";
import { drafts, history, outcome, provenance, rules, turns } from "./draft.js";
import { createFindings } from "./findings.js";
import { createImages } from "./images.js";

const ARMED_MS = 3_000;
const STALE_S = 30 * 60; // a claim of that age may be taken over
const OPEN = ["pending", "claimed"];
const KEPT = "What you entered is kept.";
const AGAIN = `${KEPT} Wait a moment, then do it again: nothing counts twice.`;
const TRANSIENT = [0, 429, 503];

/** What a person has entered and not sent. */
export function newWork() {
  return { verdicts: new Map(), comment: "", amended: null };
}

/**
 * @param {() => object} api the service, of whoever is signed in
 * @param {{say: Function, warn: Function}} tell for the live regions
 * @param {(id: string) => object} workOf what was entered for an item before
 * @param {() => void} changed called after each action that was taken
 * @param {(item: object) => void} closed called when an item is through
 */
export function createItem(api, tell, workOf, changed, closed) {
  let item = null;
  let work = newWork();
  let turn = Promise.resolve(); // actions go one after the other
  let armedUntil = 0;
  const images = createImages((id, index) => api().image(id, index));
  const findings = createFindings(onVerdict);

  function show(read) {
    item = read;
    work = workOf(item.id);
    byId("item-title").textContent = shown(item.urgent ? "Urgent draft" : "Draft");
    byId("turns").replaceChildren(...turns(item));
    byId("label").textContent = shown(item.label);
    byId("drafts").replaceChildren(...drafts(item));
    byId("rules").replaceChildren(...rules(item));
    byId("provenance").replaceChildren(...provenance(item));
    byId("comment").value = work.comment;
    byId("amended").value = work.amended ?? "";
    byId("amending").hidden = work.amended === null;
    findings.show(item, work.verdicts);
    images.show(item);
    showStanding();
    byId("item-title").focus();
  }

  function showStanding() {
    const open = OPEN.includes(item.state);
    const { state, claimed_by: by, claimed_at: since, reasons, held, acknowledged } = item;
    const parts = [
      words(state) + (by ? ` by ${by}` : ""),
      open && by && since && `for ${duration(Date.now() / 1000 - since)}`,
      `made ${duration(item.age_s)} ago`,
      words(item.template),
      held && "held: the caller waits for this review",
      reasons?.length && `urgent: ${reasons.map(words).join(", ")}`,
      item.urgent && acknowledged && "acknowledged",
    ];
    byId("standing").textContent = shown(parts.filter(Boolean).join(" · "));
    byId("history").replaceChildren(...history(item));
    byId("verdict").hidden = !open;
    const stale = state === "claimed" && Date.now() / 1000 - since > STALE_S;
    byId("claim").hidden = !(state === "pending" || stale);
    byId("release").hidden = state !== "claimed";
    byId("acknowledge").hidden = !(open && item.urgent && !acknowledged);
    byId("outcome").replaceChildren(...(open ? [] : outcome(item)));
  }

  /** Does it once what is under way has ended, if this item is still there and `when` holds. */
  function act(action, body = {}, when = () => true) {
    const id = item?.id;
    const fit = () => item && item.id === id && OPEN.includes(item.state) && when();
    turn = turn.then(() => (fit() ? perform(action, body) : false));
    return turn;
  }

  async function perform(action, body) {
    const of = item;
    byId("item").ariaBusy = "true";
    try {
      const { version } = item;
      const entered = { version, findings: [], comment: "", amended: null, ...body };
      const read = await api().act(of.id, action, entered);
      if (of !== item) return false;
      keep(read);
      tell.say(`${words(action)}: done.`);
      changed();
      return true;
    } catch (error) {
      if (of === item) await explain(error, of);
      return false;
    } finally {
      byId("item").ariaBusy = "false";
    }
  }

  const claimIfFree = () => act("claim", {}, () => item.state === "pending");

  function keep(read) {
    item = read;
    images.keep(item);
    showStanding();
  }

  async function explain(error, of) {
    if (error.name === "AbortError") return;
    if (error.status !== 409) {
      tell.warn(`${error.message} ${TRANSIENT.includes(error.status) ? AGAIN : KEPT}`);
      return;
    }
    const read = await api().item(of.id).catch(() => null);
    if (of !== item) return;
    if (read) keep(read);
    const next = OPEN.includes(item.state)
      ? "See who has it, and do it again if it is yours."
      : "See how it ended; Esc goes back.";
    tell.warn(`${error.message} ${KEPT} ${next}`);
  }

  async function close(action, amended = null) {
    const id = item.id;
    const body = { findings: findings.given, comment: work.comment, amended };
    await claimIfFree();
    if (item?.id !== id || item.state !== "claimed") return;
    if (await act(action, body)) closed(item);
  }

  function onVerdict(finding, verdict) {
    tell.say(`${finding}: ${words(verdict)}.`);
    claimIfFree();
  }

  /** Closing is final: a key only goes to its button, which Enter presses. */
  function ready(button, text) {
    if (byId("verdict").hidden) return;
    byId(button).focus();
    tell.say(text);
  }

  function agreeAndSignOff() {
    if (!findings.onlyAgreement) {
      tell.warn("You gave other verdicts than agree: sign off with s, or change them.");
      return;
    }
    findings.agreeWithAll();
    close("sign_off");
  }

  function agreeByKey() {
    if (Date.now() < armedUntil) {
      armedUntil = 0;
      agreeAndSignOff();
      return;
    }
    armedUntil = Date.now() + ARMED_MS;
    ready("agree-all", "Press y again within 3 seconds to agree with all and sign off.");
  }

  function editAmended() {
    if (byId("verdict").hidden) return;
    work.amended ??= plain(item.draft[0]?.text);
    byId("amended").value = work.amended;
    byId("amending").hidden = false;
    byId("amended").focus();
    tell.say("Change the text, then press Ctrl+Enter, or Amend again.");
  }

  function sendAmended() {
    const text = work.amended.trim();
    if (!text || text === plain(item.draft[0]?.text).trim()) {
      byId("amended").focus();
      tell.warn("The text is empty or as it was: change it, or sign off.");
      return;
    }
    close("amend", text);
  }

  byId("claim").onclick = () => act("claim");
  byId("release").onclick = () => act("release");
  byId("acknowledge").onclick = () => act("acknowledge");
  byId("agree-all").onclick = agreeAndSignOff;
  byId("sign-off").onclick = () => close("sign_off");
  byId("reject").onclick = () => close("reject");
  byId("amend").onclick = () => (work.amended === null ? editAmended() : sendAmended());
  byId("comment").oninput = (event) => (work.comment = event.target.value);
  byId("amended").oninput = (event) => (work.amended = event.target.value);
  byId("amended").onkeydown = (event) => {
    if (event.key === "Enter" && event.ctrlKey && !event.repeat) sendAmended();
  };
  byId("missed-form").onsubmit = (event) => {
    event.preventDefault();
    const name = byId("missed").value;
    if (!name.trim()) return;
    if (!findings.addMissed(name)) {
      tell.warn("The draft calls this present: it is not missed.");
      return;
    }
    byId("missed").value = "";
    byId("missed").blur();
  };

  const key = (keys, label, run) => ({ keys: [...keys], label, run });
  const give = (verdict) => () => byId("verdict").hidden || findings.give(verdict);
  const focusMissed = () => byId("verdict").hidden || byId("missed").focus();
  return {
    show,
    clear() {
      if (item) {
        const nothing = { draft: [], images: [], id: "" };
        findings.show(nothing, new Map());
        images.show(null);
      }
      item = null;
      work = newWork();
      armedUntil = 0;
      const filled = ["item-title", "standing", "turns", "label", "drafts", "rules", "provenance"];
      for (const id of [...filled, "outcome", "history"]) byId(id).replaceChildren();
      for (const id of ["comment", "amended", "missed"]) byId(id).value = "";
    },
    get id() {
      return item?.id ?? null;
    },
    keys: {
      Review: [
        key("c", "Claim (the first verdict does, too)", () => act("claim")),
        key("r", "Release", () => act("release")),
        key("n", "Acknowledge an urgent one (claiming does, too)", () => act("acknowledge")),
        key("123456789", "Select a finding", (number) => findings.select(number - 1)),
        { keys: ["j"], label: "Next finding", run: () => findings.step(1), repeats: true },
        { keys: ["k"], label: "Previous finding", run: () => findings.step(-1), repeats: true },
        key("a", "Agree", give("agree")),
        key("o", "Over-call: it is not there", give("overcall")),
        key("w", "Wrong side", give("wrong_side")),
        key("m", "Add a missed finding", focusMissed),
        key("y", "Twice: agree with all and sign off", agreeByKey),
        key("s", "Sign off, then Enter", () => ready("sign-off", "Press Enter to sign off.")),
        key("e", "Amend the text; Ctrl+Enter sends it", editAmended),
        key("x", "Reject, then Enter", () => ready("reject", "Press Enter to reject.")),
      ],
      Image: images.keys,
    },
  };
}
