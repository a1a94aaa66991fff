// The page: asks once a second, and changes only what has changed, so that focus and a reader's place are kept.
// Words of a spool or a server (paths, errors) are only ever set as text.

import { markPlot, timePlot } from "/plots.js";

const POLL_MS = 1000;
const main = document.getElementById("spools");
const cards = new Map();
let shown = null; // the last answer
let lostAt = null; // since when there is none

// Elements

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function set(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

// Text, as a link where there is an address of the web.
function link(element, text, url) {
  let inner = element.firstElementChild;
  const wanted = url && /^https?:\/\//.test(url) ? "A" : "SPAN";
  if (!inner || inner.tagName !== wanted) {
    inner = document.createElement(wanted);
    if (wanted === "A") inner.rel = "noreferrer";
    element.replaceChildren(inner);
  }
  if (wanted === "A") set(inner, "href", url);
  say(inner, text);
}

// The children of `parent`: one for each item, kept by its key.
function list(parent, items, key, make, update) {
  const old = (parent.kept ??= new Map());
  const kept = new Map();
  items.forEach((item, n) => {
    const name = key(item);
    const element = old.get(name) ?? make(item);
    kept.set(name, element);
    update(element, item);
    if (parent.children[n] !== element) parent.insertBefore(element, parent.children[n] ?? null);
  });
  for (const [name, element] of old) if (kept.get(name) !== element) element.remove();
  parent.kept = kept;
}

// Words

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const exactly = new Intl.NumberFormat("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 });
const count = (n) => whole.format(n);
const many = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (n >= 999.5 && at < units.length - 1) [n, at] = [n / 1000, at + 1];
  return `${(at > 0 && n < 100 ? exactly : n < 10 ? three : whole).format(n)} ${units[at]}`;
}

const brief = (text) => text.replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "");

function amount(n) {
  if (n < 1000) return three.format(n);
  return n < 999_500 ? `${three.format(n / 1000)}k` : `${three.format(n / 1e6)}M`;
}

const unit = () => document.querySelector("input[name=unit]:checked").value;
const figure = (n) => (unit() === "bytes" ? bytes(n) : `${amount(n)} rows`);
const rate = (n) => `${figure(n)}/s`;
const onAxis = { figure: (n) => brief(figure(n)), rate: (n) => brief(rate(n)) };
const two = (n) => String(Math.floor(n)).padStart(2, "0");

function duration(s) {
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function roughly(s) {
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  return s < 86400 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`;
}

const ago = (at, now) => (now - at < 1 ? "now" : `${roughly(now - at)} ago`);

function clock(at, now) {
  const then = new Date(at * 1000);
  const time = then.toLocaleTimeString("en-GB");
  return Math.abs(now - at) < 72000 ? time : `${then.toLocaleDateString("sv-SE")} ${time}`;
}

// States: the label, the colour's name and a shape, since colour alone tells nothing to many.

const CIRCLE = "M5 0a5 5 0 1 0 0 10A5 5 0 0 0 5 0";
const TRIANGLE = "M5 0.5 10 9.5H0Z";
const SQUARE = "M0.5 0.5h9v9h-9Z";
const RING = "M5 0a5 5 0 1 0 0 10A5 5 0 0 0 5 0m0 2.2a2.8 2.8 0 1 1 0 5.6 2.8 2.8 0 0 1 0-5.6";
const STATES = {
  ok: ["Healthy", "ok", CIRCLE],
  "backing off": ["Backing off", "back", TRIANGLE],
  blocked: ["Blocked", "blocked", SQUARE],
  "spool full": ["Spool full", "blocked", SQUARE],
  offline: ["Offline", "off", RING],
};

function stateOf(spool) {
  if (spool.problem) {
    const gone = spool.problem.kind === "not there";
    const label = spool.problem.kind[0].toUpperCase() + spool.problem.kind.slice(1);
    return gone ? [label, "off", RING] : [label, "blocked", SQUARE];
  }
  if (!spool.alive) return spool.waiting.rows ? ["Not running", "back", RING] : ["Not running", "off", RING];
  return STATES[spool.state.kind] ?? [spool.state.kind, "off", RING];
}

// What a person must know at once, in one line under the title; empty when all is well.
function reasonOf(spool) {
  if (spool.problem) return "";
  if (!spool.alive && spool.waiting.rows) {
    const rows = spool.waiting.rows === 1 ? "1 row waits" : `${count(spool.waiting.rows)} rows wait`;
    return `The job is not running; ${rows} in the spool, safe.`;
  }
  if (!spool.alive || spool.state.kind === "ok") return "";
  const { until } = spool.state;
  const reason = spool.state.reason === "commit quota" ? "the Hub's commit quota is used up" : spool.state.reason;
  const next = until === null ? "" : until <= spool.now ? " The next try is due." : ` Next try at ${clock(until, spool.now)}.`;
  return `${reason[0]?.toUpperCase() ?? ""}${reason.slice(1)}${/[.!?]$/.test(reason) ? "" : "."}${next} Rows are kept in the spool meanwhile.`;
}

// What the Hub will never take as it is waits for a person, whatever the state is; empty where there is nothing.
function refusedOf(spool) {
  const dead = spool.by_state?.dead;
  if (!dead?.shards) return "";
  return `${dead.rows ? many(dead.rows, "row") : many(dead.shards, "shard")} in the dead letter`;
}

// One card

function table(caption, columns, extra = "") {
  const body = h("tbody");
  const head = h("tr", {}, ...columns.map(([name, kind = ""]) => h("th", { scope: "col", class: kind || null }, name)));
  const whole = h("table", { class: extra || null }, h("caption", { class: "unseen" }, caption), h("thead", {}, head), body);
  return { whole, body };
}

function part(title, kind, inner) {
  const note = h("span");
  const none = h("p", { class: "none" });
  const section = h("section", { class: kind }, h("h3", {}, `${title} `, note), none, inner.whole);
  return { section, note, none, ...inner };
}

function pair(term, size) {
  const value = h("dd", { class: size }), under = h("dd", { class: "why" });
  return { whole: h("div", {}, h("dt", {}, term), value, under), value, under };
}

function fact(term) {
  const value = h("span"), under = h("small");
  return { whole: h("div", {}, h("dt", {}, term), h("dd", {}, value, under)), value, under };
}

function plotFigure(title, keys, columns, broad) {
  const place = h("div", { class: "plot" });
  const inner = table(title, columns);
  const more = h("details", {}, h("summary", {}, "As a table", h("span", { class: "unseen" }, `: ${title}`)), inner.whole);
  const names = keys.map(([name, tone]) => h("span", { class: `key ${tone}` }, name));
  const whole = h("figure", { class: broad ? "broad" : null }, h("figcaption", {}, h("h3", {}, title), ...names), place, more);
  more.addEventListener("toggle", () => render());
  return { whole, place, more, body: inner.body };
}

function makeCard(spool) {
  const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  icon.setAttribute("viewBox", "0 0 10 10");
  icon.setAttribute("aria-hidden", "true");
  icon.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  const card = {
    icon, label: h("span"), refused: h("a", { class: "refused", href: `#${spool.id}-dead` }), name: h("span"), revision: h("span", { class: "revision" }), where: h("p", { class: "where" }),
    reason: h("p", { class: "reason" }), problem: h("p", { class: "problem" }),
    age: pair("Oldest row not on the Hub", "big"), next: pair("Next commit", "mid"), quota: pair("Commits, last hour", "mid"),
    quotaBar: h("div", { class: "bar", "aria-hidden": "true" }, h("i")),
    minute: fact("Spooled, last minute"), open: fact("Open"), sealed: fact("Sealed, to upload"), staged: fact("Staged, to commit"),
    queue: fact("Queue in memory"), done: fact("On the Hub"),
    speed: plotFigure("Throughput", [["spooled", "came"], ["committed, mean of a minute", "went"]], [["Minute"], ["Spooled", "n"], ["Committed", "n"]], true),
    depth: plotFigure("Waiting", [["in the spool", "wait"]], [["Minute"], ["Waiting", "n"]]),
    commits: plotFigure("Commits", [["size of each", "went"]], [["Time"], ["Commit"], ["Shards", "n"], ["Rows", "n"], ["Size", "n"]]),
    shards: part("Shards", "shards", table("Shards", [["Shard"], ["State"], ["Rows", "n wide"], ["Size", "n wide"], ["When", "n"]])),
    changes: part("State changes and errors", "changes", table("State changes and errors", [["When"], ["State"], ["Why"]])),
    dead: part("Dead letter", "dead", table("Dead letter", [["Shard"], ["Rows", "n"], ["Why"]])),
    processes: part("Processes", "processes", table("Processes", [["Process"], ["Does"], ["Rows", "n"], ["Retries", "n wide"], ["Heard of", "n"]])),
  };
  card.quota.value.after(card.quotaBar);
  card.header = h("header", {}, h("div", { class: "names" }, h("h2", { id: `${spool.id}-name` }, card.name, card.revision), card.where),
    h("p", { class: "state" }, icon, card.label), card.refused);
  set(card.dead.section, "id", `${spool.id}-dead`);
  set(card.dead.section, "tabindex", "-1");
  card.body = [
    h("dl", { class: "lead" }, card.age.whole, card.next.whole, card.quota.whole),
    h("dl", { class: "figures" }, ...["minute", "open", "sealed", "staged", "queue", "done"].map((name) => card[name].whole)),
    h("div", { class: "plots" }, card.speed.whole, card.depth.whole, card.commits.whole),
    h("div", { class: "parts" }, card.shards.section,
      h("div", { class: "side" }, card.changes.section, card.dead.section, card.processes.section)),
  ];
  card.whole = h("article", { class: "card", "aria-labelledby": `${spool.id}-name` }, card.header, card.reason, card.problem, ...card.body);
  return card;
}

function updateCard(card, spool) {
  const [label, tone, shape] = stateOf(spool);
  set(card.whole, "data-tone", tone);
  set(card.icon.firstElementChild, "d", shape);
  set(card.icon.firstElementChild, "fill-rule", "evenodd");
  say(card.label, label);
  link(card.name, spool.repo ?? spool.spool.split("/").at(-1), spool.url);
  say(card.revision, spool.repo && spool.revision !== "main" ? ` ${spool.revision}` : "");
  say(card.where, spool.spool);
  const reason = reasonOf(spool);
  card.reason.hidden = !reason;
  say(card.reason, reason);
  say(card.refused, refusedOf(spool));
  card.refused.hidden = !refusedOf(spool);
  card.problem.hidden = !spool.problem;
  for (const element of card.body) element.hidden = Boolean(spool.problem);
  if (spool.problem) {
    say(card.problem, spool.problem.text);
    return;
  }
  updateLead(card, spool);
  updatePlots(card, spool);
  updateShards(card.shards, spool);
  updateChanges(card.changes, spool);
  updateDead(card.dead, spool);
  updateProcesses(card.processes, spool);
}

function updateLead(card, spool) {
  const { now, waiting, next, quota } = spool;
  say(card.age.value, spool.oldest_age_s === null ? "none" : duration(spool.oldest_age_s));
  const rest = refusedOf(spool), all = rest ? `Every row is on the Hub but the ${rest}.` : "Every row is on the Hub.";
  say(card.age.under, spool.oldest_age_s === null ? all : `${many(waiting.rows, "row")}, ${bytes(waiting.bytes)} wait.`);
  const left = next.at === null ? null : next.at - now;
  say(card.next.value, left === null ? (waiting.rows ? "waits" : "none due") : left < 1 ? "now" : `in ${duration(left)}`);
  say(card.next.under, next.why);
  say(card.quota.value, `${count(quota.spent)} of ${count(quota.per_hour)}`);
  const bar = card.quotaBar.firstElementChild;
  bar.style.flexBasis = `${Math.min(100, (100 * quota.spent) / Math.max(1, quota.per_hour))}%`;
  set(bar, "class", quota.spent >= quota.per_hour ? "full" : null);
  const { minute } = spool.series, speed = (name) => rate(minute[`${name}_${unit()}`]);
  say(card.minute.value, speed("spooled"));
  say(card.minute.under, `${speed("committed")} committed`);
  for (const name of ["open", "sealed", "staged"]) {
    const depth = spool.by_state[name];
    say(card[name].value, many(depth.shards, "shard"));
    say(card[name].under, depth.shards ? `${many(depth.rows, "row")}, ${bytes(depth.bytes)}` : "–");
  }
  const { queue } = spool;
  say(card.queue.value, queue === null ? "–" : many(queue.batches, "batch").replace("batchs", "batches"));
  const trouble = queue === null ? [] : ["blocked", "raised", "dropped"].filter((name) => queue[name]).map((name) => `${count(queue[name])} ${name}`);
  say(card.queue.under, queue === null ? "no job tells" : [`${bytes(queue.bytes)} of ${bytes(queue.max_bytes)}`, ...trouble].join(", "));
  say(card.done.value, many(spool.committed.rows, "row"));
  say(card.done.under, `${bytes(spool.committed.bytes)} in ${many(spool.committed.shards, "shard")}`);
}

function updatePlots(card, spool) {
  const { series, now } = spool, kind = unit();
  const came = series[`spooled_${kind}`], went = series[`committed_${kind}`], waiting = series[`waiting_${kind}`];
  const quarter = { ago: [15, 10, 5, 0], span: 15 };
  timePlot(card.speed.place, {
    label: `Throughput in the last 15 minutes. Spooled: ${rate(series.minute[`spooled_${kind}`])} over the last minute, ${rate(Math.max(...came))} at most. ` +
      `Committed: ${rate(series.minute[`committed_${kind}`])} over the last minute, ${rate(Math.max(...went))} at most.`,
    series: [{ values: came, kind: "area", tone: "came" }, { values: smoothed(went, 60 / series.step_s), kind: "line", tone: "went" }],
    format: onAxis.rate, ...quarter,
  });
  timePlot(card.depth.place, {
    label: `Waiting in the spool in the last 15 minutes: ${figure(waiting.at(-1))} now, ${figure(Math.max(...waiting))} at most.`,
    series: [{ values: waiting, kind: "area", tone: "wait" }], format: onAxis.figure, ...quarter,
  });
  const size = (commit) => commit[kind];
  markPlot(card.commits.place, {
    label: spool.commits.length
      ? `Commits in the last hour: ${count(spool.commits.length)}, the last ${ago(spool.commits.at(-1).at, now)}; ${figure(Math.max(...spool.commits.map(size)))} the largest.`
      : "Commits in the last hour: none.",
    marks: spool.commits.map((commit) => ({
      share: Math.max(0, 1 - (now - commit.at) / 3600), value: size(commit),
      title: `${clock(commit.at, now)}: ${many(commit.rows, "row")}, ${bytes(commit.bytes)} in ${many(commit.shards, "shard")}`,
    })),
    format: onAxis.figure, ago: [60, 40, 20, 0], span: 60, tone: "went",
  });
  plotTables(card, spool, came, went, waiting);
}

// Commits come all at once and now and then: a mean over the minute behind is what can be held against what is spooled.
function smoothed(values, width) {
  return values.map((_, n) => {
    const some = values.slice(Math.max(0, n + 1 - width), n + 1);
    return some.reduce((sum, value) => sum + value, 0) / some.length;
  });
}

function plotTables(card, spool, came, went, waiting) {
  const minute = 60 / spool.series.step_s;
  const minutes = Array.from({ length: came.length / minute }, (_, n) => n).reverse();
  const mean = (values, n) => values.slice(n * minute, (n + 1) * minute).reduce((sum, value) => sum + value, 0) / minute;
  const name = (n) => clock(spool.series.from + n * 60, spool.now).slice(0, -3);
  if (card.speed.more.open) cells(card.speed.body, minutes, (n) => n, (n) => [[name(n)], [rate(mean(came, n)), "n"], [rate(mean(went, n)), "n"]]);
  if (card.depth.more.open) cells(card.depth.body, minutes, (n) => n, (n) => [[name(n)], [figure(waiting[(n + 1) * minute - 1]), "n"]]);
  if (card.commits.more.open) {
    cells(card.commits.body, [...spool.commits].reverse(), (commit) => commit.sha, (commit) => [
      [clock(commit.at, spool.now), "short"], [commit.sha.slice(0, 8), "", commit.url], [count(commit.shards), "n"], [count(commit.rows), "n"], [bytes(commit.bytes), "n"],
    ]);
  }
}

// Rows of [text, class, url] cells.
function cells(body, items, key, of) {
  list(body, items, key, (item) => h("tr", {}, ...of(item).map(([, kind]) => h("td", { class: kind || null }))), (row, item) =>
    of(item).forEach(([text, , url], n) => (url === undefined ? say(row.children[n], text) : link(row.children[n], text, url))));
}

function updatePart(card, items, note, nothing) {
  say(card.note, note);
  card.none.hidden = items.length > 0;
  card.whole.hidden = items.length === 0;
  say(card.none, nothing);
}

function tag(cell, text, mark) {
  if (!cell.firstElementChild) cell.append(h("span", { class: "tag" }));
  set(cell.firstElementChild, "data-mark", mark);
  say(cell.firstElementChild, text);
}

function updateShards(card, spool) {
  updatePart(card, spool.shards, "the next to go, and the last on the Hub", "None yet.");
  list(card.body, spool.shards, (shard) => shard.id,
    () => h("tr", {}, h("td", {}, h("span"), h("span", { class: "under" })), h("td", { class: "short" }), h("td", { class: "n wide" }), h("td", { class: "n wide" }), h("td", { class: "n" })),
    (row, shard) => {
      const [path, state, rows, size, when] = row.children;
      link(path.children[0], shard.path ?? `being written by ${shard.writer}`, shard.url);
      say(path.children[1], `${many(shard.rows, "row")}, ${bytes(shard.bytes)}`);
      tag(state, shard.state, shard.state);
      say(rows, count(shard.rows));
      say(size, bytes(shard.bytes));
      say(when, ago(shard.at, spool.now));
    });
}

function updateChanges(card, spool) {
  updatePart(card, spool.changes, "", refusedOf(spool) ? "None: what was refused is in the dead letter." : "None: all went well.");
  list(card.body, spool.changes, (change) => `${change.at} ${change.kind}`,
    () => h("tr", {}, h("td", { class: "short" }), h("td", { class: "short" }), h("td")),
    (row, change) => {
      say(row.children[0], clock(change.at, spool.now));
      tag(row.children[1], change.kind, change.kind);
      say(row.children[2], change.reason || (change.kind === "ok" ? "going on" : ""));
    });
}

function updateDead(card, spool) {
  const all = spool.by_state.dead;
  updatePart(card, spool.dead, all.shards ? `${many(all.shards, "shard")}, ${many(all.rows, "row")}, to look at: hubsync dead-letter list ${spool.spool}` : "", "Empty: the Hub has refused nothing.");
  cells(card.body, spool.dead, (shard) => shard.path, (shard) => [[shard.path ?? "–"], [count(shard.rows), "n"], [shard.why ?? ""]]);
}

function updateProcesses(card, spool) {
  updatePart(card, spool.processes, "", "None has this spool open.");
  const does = (process) => [process.writer && "writes", process.commits && "commits"].filter(Boolean).join(" and ") || "–";
  const heard = (process) => (process.alive ? "now" : `${roughly(process.heard_s)} ago${process.there ? ", stopped" : ", ended"}`);
  cells(card.body, spool.processes, (process) => process.writer ?? `pid ${process.pid}`, (process) => [
    [`${process.pid ?? "?"}${process.writer ? ` (${process.writer})` : ""}`, "words"], [does(process), "words"],
    [process.rows === null ? "–" : count(process.rows), "n"], [process.retries === null ? "–" : count(process.retries), "n wide"], [heard(process), "n words"],
  ]);
}

// The whole

function render() {
  if (!shown) return;
  const spools = shown.spools;
  for (const spool of spools) if (!cards.has(spool.id)) cards.set(spool.id, makeCard(spool));
  list(main, spools.length ? spools : [{ id: "empty" }], (spool) => spool.id,
    (spool) => (spool.id === "empty" ? emptyPage() : cards.get(spool.id).whole),
    () => {});
  for (const spool of spools) updateCard(cards.get(spool.id), spool);
  for (const id of cards.keys()) if (!spools.some((spool) => spool.id === id)) cards.delete(id);
  say(document.getElementById("summary"), spools.length > 1 ? many(spools.length, "spool") : "");
}

function emptyPage() {
  return h("p", { class: "empty" }, h("strong", {}, "No spool yet"),
    `A job makes one as soon as it opens an uploader; it is shown here then. Looked for in ${shown.home}.`);
}

// Only what changes a state is read out, not each figure.
const told = new Map();
function announce(spools, ...news) {
  for (const spool of spools) {
    const name = spool.repo ?? spool.spool, [label] = stateOf(spool), refused = refusedOf(spool), known = told.get(spool.id);
    if (known && known[0] !== label) news.push(`${name}: ${label}. ${reasonOf(spool)}`);
    if (known && refused && !known[1]) news.push(`${name}: ${refused}.`);
    told.set(spool.id, [label, refused]);
  }
  for (const id of told.keys()) if (!spools.some((spool) => spool.id === id)) told.delete(id);
  if (news.length) say(document.getElementById("announcement"), news.join(" "));
  const worst = ["blocked", "back", "off", "ok"].map((tone) => spools.map(stateOf).find((state) => state[1] === tone)).find(Boolean);
  document.title = worst ? `${worst[0]} – hubsync` : "hubsync";
}

async function poll() {
  try {
    const answer = await fetch("/api/spools", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(String(answer.status));
    shown = await answer.json();
    const again = lostAt === null ? [] : ["Connected again."];
    lostAt = null;
    say(document.getElementById("connection"), "live");
    render();
    announce(shown.spools, ...again);
  } catch (error) {
    if (lostAt === null) {
      lostAt = Date.now() / 1000;
      say(document.getElementById("announcement"), "Disconnected. What is shown does not change.");
      if (error instanceof TypeError === false && error.name !== "TimeoutError" && !/^\d+$/.test(error.message)) console.error(error);
    }
    say(document.getElementById("connection"), `disconnected since ${clock(lostAt, lostAt)}`);
  }
  document.body.classList.toggle("lost", lostAt !== null);
  setTimeout(poll, POLL_MS);
}

for (const input of document.querySelectorAll("input[name=unit]")) input.addEventListener("change", render);
new ResizeObserver(render).observe(main);
poll();
