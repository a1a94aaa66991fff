// The overview: one row per spool, with sort and filter. Opening a row shows that spool's card below.

import { element, setAttribute, setText, updateList } from "/dom.js";
import { bytes, count, duration, rate, rejectedOf, stateOf, unit } from "/format.js";

const name = (spool) => spool.info?.repo ?? spool.spool.split("/").at(-1);
const waiting = (spool) => (spool.info ? spool.info.waiting.rows : -1);
const COLUMNS = [
  { name: "State", text: (spool) => stateOf(spool).label },
  { name: "Dataset", text: name, sort: (spool) => name(spool).toLowerCase() },
  { name: "Waiting", kind: "n", text: (spool) => (spool.info ? count(spool.info.waiting.rows) : "–"), sort: waiting },
  { name: "Oldest", kind: "n wide", text: (spool) => (spool.info?.oldest_age_s == null ? "–" : duration(spool.info.oldest_age_s)), sort: (spool) => spool.info?.oldest_age_s ?? -1 },
  { name: "On the Hub", kind: "n wide", text: (spool) => (spool.info ? count(spool.info.committed.rows) : "–"), sort: (spool) => spool.info?.committed.rows ?? -1 },
  { name: "Size", kind: "n wide", text: (spool) => (spool.info ? bytes(spool.info.committed.bytes) : "–"), sort: (spool) => spool.info?.committed.bytes ?? -1 },
  { name: "Rate", kind: "n wide", text: (spool) => (spool.info?.alive ? rate(spool.info.minute[`spooled_${unit()}`]) : "–"), sort: (spool) => (spool.info?.alive ? spool.info.minute[`spooled_${unit()}`] : -1) },
  { name: "Rejected", kind: "n", text: (spool) => (spool.info ? count(spool.info.rejected.rows) : "–"), sort: (spool) => spool.info?.rejected.rows ?? -1 },
  { name: "Lost", kind: "n", text: (spool) => (spool.info ? count(spool.info.lost_rows) : "–"), sort: (spool) => spool.info?.lost_rows ?? -1 },
];
const FILTERS = {
  all: { label: "All", test: () => true },
  running: { label: "Running", test: (spool) => Boolean(spool.info?.alive) },
  attention: { label: "Needs attention", test: (spool) => spool.problem || ["warning", "error"].includes(stateOf(spool).tone) },
  finished: { label: "Finished", test: (spool) => Boolean(spool.info && !spool.info.alive && !spool.info.waiting.rows) },
};

export class Overview {
  // `onChange` is called when the user sorts, filters or opens a spool.
  constructor(onChange) {
    this.sort = null; // { column, descending }; null: the server's order, problems first
    this.filter = "all";
    this.search = "";
    this.opened = null; // the id of the spool whose card is shown
    this.onChange = onChange;
    this.root = this.#create();
  }

  #create() {
    const search = element("input", { type: "search", placeholder: "Filter by dataset or directory", "aria-label": "Filter by dataset or directory" });
    search.addEventListener("input", () => { this.search = search.value.trim().toLowerCase(); this.onChange(); });
    this.chips = Object.entries(FILTERS).map(([name, { label }]) => {
      const chip = element("button", { type: "button", class: "chip" }, label, " ", element("span"));
      chip.addEventListener("click", () => { this.filter = name; this.onChange(); });
      return [name, chip];
    });
    this.headers = COLUMNS.map((column) => {
      const button = element("button", { type: "button" }, column.name);
      button.addEventListener("click", () => { this.#sortBy(column); this.onChange(); });
      return element("th", { scope: "col", class: column.kind ?? null }, button);
    });
    this.body = element("tbody");
    this.empty = element("p", { class: "none" }, "No spool matches.");
    const table = element("table", {}, element("caption", { class: "visually-hidden" }, "Spools"),
      element("thead", {}, element("tr", {}, ...this.headers)), this.body);
    return element("section", { class: "overview", "aria-label": "Overview" },
      element("div", { class: "tools" }, element("div", { class: "chips", role: "group", "aria-label": "Show" }, ...this.chips.map(([, chip]) => chip)), search), table, this.empty);
  }

  // First click: largest first (words: A to Z); second: the other way round; third: problems first again.
  #sortBy(column) {
    const first = column.kind !== undefined;
    if (this.sort?.column !== column) this.sort = { column, descending: first };
    else if (this.sort.descending === first) this.sort = { column, descending: !first };
    else this.sort = null;
  }

  // Return the spools to show, in order.
  select(spools) {
    const matches = spools.filter((spool) => FILTERS[this.filter].test(spool)
      && `${spool.info?.repo ?? ""} ${spool.spool}`.toLowerCase().includes(this.search));
    if (!this.sort) return matches;
    const { column, descending } = this.sort, value = column.sort ?? column.text;
    const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
    return matches.sort((a, b) => (descending ? compare(b, a) : compare(a, b)));
  }

  update(spools) {
    for (const [name, chip] of this.chips) {
      setAttribute(chip, "aria-pressed", String(name === this.filter));
      setText(chip.lastElementChild, count(spools.filter(FILTERS[name].test).length));
    }
    COLUMNS.forEach((column, n) => {
      const sorted = this.sort?.column === column ? (this.sort.descending ? "descending" : "ascending") : null;
      setAttribute(this.headers[n], "aria-sort", sorted);
    });
    const shown = this.select(spools);
    this.empty.hidden = shown.length > 0;
    updateList(this.body, shown, (spool) => spool.id, (spool) => this.#createRow(spool), (row, spool) => this.#updateRow(row, spool));
  }

  #createRow(spool) {
    const cells = COLUMNS.map((column) => element("td", { class: column.kind ?? null }));
    cells[0].append(element("span", { class: "tag" }));
    const open = element("button", { type: "button", class: "open" });
    open.addEventListener("click", () => { this.opened = this.opened === spool.id ? null : spool.id; this.onChange(); });
    cells[1].append(open, element("span", { class: "directory" }));
    return element("tr", {}, ...cells);
  }

  #updateRow(row, spool) {
    const opened = this.opened === spool.id;
    COLUMNS.forEach((column, n) => {
      const cell = row.children[n], text = column.text(spool);
      if (n === 0) {
        setText(cell.firstElementChild, text);
        setAttribute(cell.firstElementChild, "data-tone", stateOf(spool).tone);
      } else if (n === 1) {
        setText(cell.firstElementChild, text);
        setAttribute(cell.firstElementChild, "aria-expanded", String(opened));
        setText(cell.lastElementChild, spool.spool);
      } else setText(cell, text);
    });
    setAttribute(row, "class", opened ? "opened" : null);
    setAttribute(row, "title", spool.problem?.text ?? (rejectedOf(spool) || null));
  }
}
