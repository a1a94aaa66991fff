// Polls the server once a second and shows an overview (with more than three spools) and the cards of opened spools.

import { createCard, updateCard } from "/card.js";
import { element, setText, updateList } from "/dom.js";
import { clock, plural, reasonOf, rejectedOf, stateOf } from "/format.js";
import { Overview } from "/overview.js";

const POLL_MS = 1000;
const WITHOUT_OVERVIEW = 3; // so many spools fit on the page with all their detail
const main = document.getElementById("spools");
const cards = new Map();
let page = null; // the last response
let disconnectedAt = null;
let pollTimer = null;

const overview = new Overview(() => {
  location.replace(overview.opened === null ? "#" : `#${overview.opened}`);
  render();
  poll(); // for the detail of the spool that was just opened
});

function render() {
  if (!page) return;
  const { spools } = page, needsOverview = spools.length > WITHOUT_OVERVIEW;
  if (needsOverview) overview.update(spools);
  const shown = needsOverview ? spools.filter((spool) => spool.id === overview.opened) : spools;
  for (const spool of shown) if (!cards.has(spool.id)) cards.set(spool.id, createCard(spool, render));
  const items = [...(needsOverview ? [{ id: "overview" }] : []), ...shown];
  updateList(main, items.length ? items : [{ id: "empty" }], (item) => item.id,
    ({ id }) => (id === "empty" ? createEmptyPage() : id === "overview" ? overview.root : cards.get(id).root),
    () => {});
  for (const spool of shown) updateCard(cards.get(spool.id), spool);
  for (const id of cards.keys()) if (!shown.some((spool) => spool.id === id)) cards.delete(id);
  setText(document.getElementById("summary"), spools.length > 1 ? plural(spools.length, "spool") : "");
}

function createEmptyPage() {
  return element("p", { class: "empty" }, element("strong", {}, "No spool yet"),
    `Spools appear here as soon as a job opens an uploader. This page watches ${page.home}.`);
}

// Screen readers announce changes of a state, not every figure.
const announced = new Map();
function announce(spools, ...messages) {
  for (const spool of spools) {
    const name = spool.info?.repo ?? spool.spool, { label } = stateOf(spool), rejected = rejectedOf(spool), last = announced.get(spool.id);
    if (last && last.label !== label) messages.push(`${name}: ${label}. ${reasonOf(spool)}`);
    if (last && rejected && !last.rejected) messages.push(`${name}: ${rejected}.`);
    announced.set(spool.id, { label, rejected });
  }
  for (const id of announced.keys()) if (!spools.some((spool) => spool.id === id)) announced.delete(id);
  if (messages.length) setText(document.getElementById("announcement"), messages.join(" "));
  const states = spools.map(stateOf);
  const worst = ["error", "warning", "ok", "idle"].map((tone) => states.find((state) => state.tone === tone)).find(Boolean);
  document.title = worst ? `${worst.label} – hubsync` : "hubsync";
}

async function poll() {
  clearTimeout(pollTimer);
  try {
    const query = overview.opened === null ? "" : `?detail=${encodeURIComponent(overview.opened)}`;
    const response = await fetch(`/api/spools${query}`, { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    page = await response.json();
    const messages = disconnectedAt === null ? [] : ["Connected again."];
    disconnectedAt = null;
    setText(document.getElementById("connection"), "live");
    render();
    announce(page.spools, ...messages);
  } catch (error) {
    // A server that is gone is shown on the page; anything else is a bug in the page.
    const isExpected = error instanceof TypeError || error.name === "TimeoutError" || error.message.startsWith("HTTP ");
    if (!isExpected) console.error(error);
    if (disconnectedAt === null) {
      disconnectedAt = Date.now() / 1000;
      setText(document.getElementById("announcement"), "Disconnected. The figures are no longer updated.");
    }
    setText(document.getElementById("connection"), `disconnected since ${clock(disconnectedAt, disconnectedAt)}`);
  }
  document.body.classList.toggle("disconnected", disconnectedAt !== null);
  clearTimeout(pollTimer);
  pollTimer = setTimeout(poll, POLL_MS);
}

overview.opened = /^#s[0-9a-f]+$/.test(location.hash) ? location.hash.slice(1) : null;
for (const input of document.querySelectorAll("input[name=unit]")) input.addEventListener("change", render);
new ResizeObserver(render).observe(main);
poll();
