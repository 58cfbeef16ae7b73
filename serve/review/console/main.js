/** The console: who is signed in, which view is shown, and when it locks. */

import { canBeKey, createApi } from "./api.js";
import { byId, shown } from "./dom.js";
import { createItem, newWork } from "./item.js";
import { describe, listen } from "./keys.js";
import { createList } from "./list.js";

// 45 CFR 164.312(a)(2)(iii): a session ends by itself after a time without activity.
const IDLE_MS = 15 * 60_000;
const IDLE_WARNING_MS = 60_000;
const POLL_MS = 5_000;
const POLL_BEHIND_MS = 30_000; // while an item is open: only counts are looked at
const INPUT = ["pointerdown", "pointermove", "keydown", "wheel"];

const base = new URL("..", document.baseURI).pathname.replace(/\/$/, "");
let session = null; // {api, ended, list}
let kept = { owner: null, works: new Map() }; // what was entered and not sent, and whose it is
let lastInput = Date.now();
let warned = false;
let nextPoll = 0;
let polling = false;

const tell = {
  say(text) {
    byId("said").textContent = shown(text);
    byId("warned").textContent = "";
  },
  warn(text) {
    byId("warned").textContent = shown(text);
    byId("said").textContent = "";
  },
};

const item = createItem(() => session.api, tell, workOf, () => (nextPoll = 0), onClosed);

function view() {
  return ["sign-in", "list", "item"].find((id) => !byId(id).hidden);
}

function show(id) {
  for (const other of ["sign-in", "list", "item"]) byId(other).hidden = other !== id;
  byId("lock").hidden = id === "sign-in";
}

function workOf(id) {
  if (!kept.works.has(id)) kept.works.set(id, newWork());
  return kept.works.get(id);
}

function hasUnsent() {
  const entered = ({ verdicts, comment, amended }) => verdicts.size || comment || amended !== null;
  return [...kept.works.values()].some(entered);
}

/** Tells one key from another after it is gone; null where the browser cannot. */
async function ownerOf(key) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(key));
  return new Uint8Array(digest).join();
}

async function signIn(event) {
  event.preventDefault();
  const key = byId("key").value.trim();
  if (!canBeKey(key)) return tell.warn("This is not a key.");
  const ended = new AbortController();
  const api = createApi(base, key, ended.signal);
  const list = createList(api, open);
  try {
    showCounts(await list.refresh());
  } catch (error) {
    ended.abort();
    return tell.warn(error.status === 401 ? "This key is not known." : error.message);
  }
  byId("key").value = "";
  const owner = await ownerOf(key);
  if (owner === null || owner !== kept.owner) kept = { owner, works: new Map() };
  session = { api, ended, list };
  nextPoll = Date.now() + POLL_MS;
  tell.say("Signed in.");
  show("list");
  list.move(0);
}

function lock(why) {
  if (!session) return;
  session.ended.abort();
  session.list.clear();
  session = null;
  item.clear();
  byId("counts").textContent = "";
  byId("help").close();
  show("sign-in");
  tell.say(why);
  byId("key").focus();
}

/** What went wrong outside of an item. A key that is no longer good ends the session. */
function failed(error) {
  if (error.name === "AbortError") return;
  if (error.status === 401) lock("Signed out: the key is not accepted any more.");
  else tell.warn(error.message);
}

async function open(id) {
  const { api, ended } = session;
  try {
    const read = await api.item(id);
    if (ended.signal.aborted) return;
    item.clear();
    tell.say("");
    show("item");
    item.show(read);
  } catch (error) {
    failed(error);
  }
}

function back() {
  const id = item.id;
  item.clear();
  show("list");
  if (!session.list.focus(id)) byId("list-title").focus();
  return refresh();
}

/** On to the next that nobody has: urgent ones first. */
async function onClosed(closed) {
  kept.works.delete(closed.id);
  const { api } = session;
  try {
    const next = await api.list({ state: "pending", limit: 1 });
    showCounts(next.counts);
    if (next.data.length) {
      await open(next.data[0].id);
      tell.say("Closed. This is the next one.");
      return;
    }
    await back();
    tell.say("Closed. Nothing else is pending.");
  } catch (error) {
    failed(error);
  }
}

function showCounts({ pending, claimed, urgent }) {
  byId("counts").textContent = `${urgent} urgent · ${pending} pending · ${claimed} claimed`;
  byId("counts").classList.toggle("urgent", urgent > 0);
}

async function countsOf(api) {
  return (await api.list({ state: "open", limit: 1 })).counts;
}

async function refresh() {
  if (!session) return;
  const { api, list, ended } = session;
  polling = true;
  try {
    const behind = view() === "item";
    const counts = await (behind ? countsOf(api) : list.refresh());
    if (!ended.signal.aborted) showCounts(counts);
  } catch (error) {
    failed(error);
  } finally {
    polling = false;
    nextPoll = Date.now() + (view() === "item" ? POLL_BEHIND_MS : POLL_MS);
  }
}

function expire() {
  const idle = Date.now() - lastInput;
  if (!session) return;
  if (idle >= IDLE_MS) {
    lock("Locked after 15 minutes without input. What you entered waits for the same key.");
  } else if (idle >= IDLE_MS - IDLE_WARNING_MS && !warned) {
    warned = true;
    tell.say("Locks in a minute without input.");
  }
}

function onInput() {
  // First: a computer that slept past the time must not be woken into an open session.
  expire();
  lastInput = Date.now();
  warned = false;
}

function everySecond() {
  expire();
  // A page that nobody sees need not look, and each look is recorded.
  if (session && !polling && !document.hidden && Date.now() >= nextPoll) refresh();
}

const help = { keys: ["?"], label: "All keys", run: () => byId("help").showModal() };
const common = [help, { keys: ["L"], label: "Lock", run: () => lock("Locked.") }];
const listKeys = [
  { keys: ["j", "ArrowDown"], label: "Next", run: () => session.list.move(1), repeats: true },
  { keys: ["k", "ArrowUp"], label: "Previous", run: () => session.list.move(-1), repeats: true },
  { keys: ["Enter"], label: "Open" },
  { keys: ["/"], label: "Filter", run: () => byId("state").focus() },
];
const leave = { keys: ["Escape"], label: "Out of a field; back to the queue", run: back };

function keysNow() {
  if (!session) return [help];
  const own = view() === "list" ? listKeys : [leave, ...Object.values(item.keys).flat()];
  return [...own, ...common];
}

byId("sign-in").onsubmit = signIn;
byId("lock").onclick = () => lock("Locked.");
byId("help-open").onclick = help.run;
byId("help-keys").replaceChildren(
  ...describe({ Everywhere: [...common, leave], Queue: listKeys, ...item.keys }),
);
byId("back").onclick = back;
byId("state").onchange = byId("urgent").onchange = () => {
  session.list.showPages(1);
  refresh();
};
byId("more").onclick = () => {
  session.list.showPages(session.list.pages + 1);
  refresh();
};
for (const kind of INPUT) addEventListener(kind, onInput, { capture: true, passive: true });
// Going back to a page that the browser kept must not bring the session back.
addEventListener("pagehide", () => lock("Locked."));
addEventListener("beforeunload", (event) => session && hasUnsent() && event.preventDefault());
document.addEventListener("visibilitychange", everySecond);
listen(keysNow, () => byId("single-keys").checked);
setInterval(everySecond, 1_000);
byId("key").focus();
