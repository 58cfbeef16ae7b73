/** The queue: rows that follow the service. Does not know what is inside of an item. */

import { byId, duration, element, shown, words } from "./dom.js";

const PAGE = 50;

/**
 * @param {object} api as createApi makes it
 * @param {(id: string) => void} open what opens an item
 */
export function createList(api, open) {
  const rows = new Map(); // of reviews by id: a row that stays keeps its focus
  let pages = 1;

  async function load() {
    const query = { state: byId("state").value, limit: PAGE };
    if (byId("urgent").checked) query.urgent = "true";
    const found = [];
    let answer = {};
    for (let page = 0; page < pages && (page === 0 || answer.has_more); page += 1) {
      answer = await api.list(page === 0 ? query : { ...query, after: answer.next });
      found.push(...answer.data);
    }
    return { found, answer };
  }

  /** Asks anew, and shows it. Answers the counts. */
  async function refresh() {
    const asked = filters();
    const { found, answer } = await load();
    // A filter that was changed meanwhile has asked for itself.
    if (asked === filters()) render(found, answer.has_more);
    return answer.counts;
  }

  function render(found, hasMore) {
    const body = byId("rows");
    const known = new Set(found.map(({ id }) => id));
    for (const [id, row] of rows) {
      if (known.has(id)) continue;
      const focused = row.contains(document.activeElement);
      const neighbour = row.nextElementSibling ?? row.previousElementSibling;
      row.remove();
      rows.delete(id);
      if (focused) (neighbour?.querySelector("button") ?? byId("list-title")).focus();
    }
    found.forEach((summary, at) => {
      if (!rows.has(summary.id)) rows.set(summary.id, newRow(summary, open));
      const row = rows.get(summary.id);
      fill(row, summary);
      if (body.children[at] !== row) body.insertBefore(row, body.children[at] ?? null);
    });
    byId("empty").hidden = found.length > 0;
    byId("more").hidden = !hasMore;
  }

  /** To the row `step` further, or the first. */
  function move(step) {
    const buttons = [...byId("rows").querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    buttons[at < 0 ? 0 : Math.min(buttons.length - 1, Math.max(0, at + step))]?.focus();
  }

  return {
    refresh,
    move,
    /** To an item's row; whether it is there. */
    focus(id) {
      rows.get(id)?.querySelector("button").focus();
      return rows.has(id);
    },
    /** More rows than the first page has, from now on; or one page again. */
    showPages(count) {
      pages = count;
    },
    get pages() {
      return pages;
    },
    clear() {
      rows.clear();
      byId("rows").replaceChildren();
    },
  };
}

function filters() {
  return `${byId("state").value} ${byId("urgent").checked}`;
}

function newRow({ id, question }, open) {
  const properties = { type: "button", dir: "auto", onclick: () => open(id) };
  const button = element("button", properties, question ?? "(cannot be read)");
  const heading = element("th", { scope: "row" }, button);
  const [urgency, ...others] = ["td", "td", "td", "td", "td"].map((name) => element(name));
  const row = element("tr", {}, urgency, heading, ...others);
  // Anywhere in the row, for the mouse; the button is for everybody.
  row.addEventListener("click", (event) => event.target === button || open(id));
  return row;
}

function fill(row, summary) {
  const { urgent, reasons, template, status, state, claimed_by: by, held, age_s: age } = summary;
  row.classList.toggle("urgent", urgent);
  const texts = [
    urgent ? `Urgent${reasons?.length ? `: ${reasons.map(words).join(", ")}` : ""}` : "",
    null,
    words(template),
    status ?? "",
    [words(state), by && `by ${by}`, held && "(draft held)"].filter(Boolean).join(" "),
    duration(age),
  ].map((text) => text && shown(text));
  texts.forEach((text, at) => {
    // Only what differs: a screen reader follows changes.
    if (text !== null && row.children[at].textContent !== text) row.children[at].textContent = text;
  });
}
