// The card of one spool: its state, figures, plots and tables.

import { createTable, element, setAttribute, setLink, setTag, setText, updateList, updateRows } from "/dom.js";
import { ago, amount, axis, bytes, clock, count, duration, plural, rate, reasonOf, rejectedOf, shortDuration, stateOf, unit } from "/format.js";
import { markPlot, timePlot } from "/plots.js";

const SVG = "http://www.w3.org/2000/svg";

// `onToggle` is called when a plot's table is opened or closed.
export function createCard(spool, onToggle) {
  const icon = document.createElementNS(SVG, "svg");
  icon.setAttribute("viewBox", "0 0 10 10");
  icon.setAttribute("aria-hidden", "true");
  icon.append(document.createElementNS(SVG, "path"));
  const card = {
    icon, label: element("span"), rejectedLink: element("a", { class: "rejected", href: `#${spool.id}-rejected` }),
    name: element("span"), revision: element("span", { class: "revision" }), directory: element("p", { class: "directory" }),
    reason: element("p", { class: "reason" }), problem: element("p", { class: "problem" }),
    age: createTerm("Oldest row not on the Hub", "big"), next: createTerm("Next commit", "mid"), quota: createTerm("Commits in the last hour", "mid"),
    quotaBar: element("div", { class: "bar", "aria-hidden": "true" }, element("i")),
    minute: createFigure("Spooled, last minute"), open: createFigure("Open"), sealed: createFigure("Sealed, to upload"), staged: createFigure("Staged, to commit"),
    queue: createFigure("Queue in memory"), committed: createFigure("On the Hub"),
    throughput: createPlot("Throughput", [["spooled", "spooled"], ["committed, mean of a minute", "committed"]], [["Minute"], ["Spooled", "n"], ["Committed", "n"]], onToggle, true),
    waiting: createPlot("Waiting", [["in the spool", "waiting"]], [["Minute"], ["Waiting", "n"]], onToggle),
    commits: createPlot("Commits", [["size of each", "committed"]], [["Time"], ["Commit"], ["Shards", "n"], ["Rows", "n"], ["Size", "n"]], onToggle),
    shards: createSection("Shards", "shards", [["Shard"], ["State"], ["Rows", "n wide"], ["Size", "n wide"], ["When", "n"]]),
    changes: createSection("State changes and errors", "changes", [["When"], ["State"], ["Reason"]]),
    rejected: createSection("Dead letter", "dead-letter", [["Reason"], ["Shards", "n"], ["Kept", "n"], ["Lost", "n"], ["Newest", "n"]]),
    processes: createSection("Processes", "processes", [["Process"], ["Role"], ["Rows", "n"], ["Retries", "n wide"], ["Heartbeat", "n"]]),
  };
  card.quota.value.after(card.quotaBar);
  setAttribute(card.rejected.section, "id", `${spool.id}-rejected`);
  setAttribute(card.rejected.section, "tabindex", "-1");
  const header = element("header", {},
    element("div", { class: "names" }, element("h2", { id: `${spool.id}-name` }, card.name, card.revision), card.directory),
    element("p", { class: "state" }, icon, card.label), card.rejectedLink);
  card.body = [
    element("dl", { class: "lead" }, card.age.root, card.next.root, card.quota.root),
    element("dl", { class: "figures" }, ...["minute", "open", "sealed", "staged", "queue", "committed"].map((name) => card[name].root)),
    element("div", { class: "plots" }, card.throughput.root, card.waiting.root, card.commits.root),
    element("div", { class: "parts" }, card.shards.section,
      element("div", { class: "side" }, card.changes.section, card.rejected.section, card.processes.section)),
  ];
  card.root = element("article", { class: "card", "aria-labelledby": `${spool.id}-name` }, header, card.reason, card.problem, ...card.body);
  return card;
}

function createSection(title, kind, columns) {
  const note = element("span");
  const empty = element("p", { class: "none" });
  const { table, body } = createTable(title, columns);
  return { section: element("section", { class: kind }, element("h3", {}, `${title} `, note), empty, table), note, empty, table, body };
}

function createTerm(term, size) {
  const value = element("dd", { class: size }), detail = element("dd", { class: "why" });
  return { root: element("div", {}, element("dt", {}, term), value, detail), value, detail };
}

function createFigure(term) {
  const value = element("span"), detail = element("small");
  return { root: element("div", {}, element("dt", {}, term), element("dd", {}, value, detail)), value, detail };
}

function createPlot(title, keys, columns, onToggle, wide = false) {
  const plot = element("div", { class: "plot" });
  const { table, body } = createTable(title, columns);
  const details = element("details", {}, element("summary", {}, "As a table", element("span", { class: "visually-hidden" }, `: ${title}`)), table);
  const legend = keys.map(([name, tone]) => element("span", { class: `key ${tone}` }, name));
  const root = element("figure", { class: wide ? "broad" : null }, element("figcaption", {}, element("h3", {}, title), ...legend), plot, details);
  details.addEventListener("toggle", onToggle);
  return { root, plot, details, body };
}

export function updateCard(card, spool) {
  const { info, problem } = spool, state = stateOf(spool), reason = reasonOf(spool), rejected = rejectedOf(spool);
  setAttribute(card.root, "data-tone", state.tone);
  setAttribute(card.icon.firstElementChild, "d", state.shape);
  setAttribute(card.icon.firstElementChild, "fill-rule", "evenodd");
  setText(card.label, state.label);
  setLink(card.name, info?.repo ?? spool.spool.split("/").at(-1), info?.url);
  setText(card.revision, info && info.revision !== "main" ? ` ${info.revision}` : "");
  setText(card.directory, spool.spool);
  card.reason.hidden = !reason;
  setText(card.reason, reason);
  card.rejectedLink.hidden = !rejected;
  setText(card.rejectedLink, rejected);
  card.problem.hidden = !problem;
  setText(card.problem, problem?.text ?? "");
  for (const part of card.body) part.hidden = !info?.detail;
  if (!info?.detail) return;
  updateLead(card, spool);
  updateFigures(card, info);
  updatePlots(card, spool);
  updateShards(card.shards, spool);
  updateChanges(card.changes, spool);
  updateRejected(card.rejected, spool);
  updateProcesses(card.processes, info.detail);
}

function updateLead(card, spool) {
  const { now, info } = spool, { waiting, next, detail: { quota } } = info;
  const isOnHub = info.oldest_age_s === null, rejected = rejectedOf(spool);
  setText(card.age.value, isOnHub ? "none" : duration(info.oldest_age_s));
  const complete = rejected ? `Every row is on the Hub except ${rejected}.` : "Every row is on the Hub.";
  setText(card.age.detail, isOnHub ? complete : `${plural(waiting.rows, "row")}, ${bytes(waiting.bytes)} not on the Hub yet.`);
  const seconds = next.at === null ? null : next.at - now;
  setText(card.next.value, seconds === null ? (waiting.rows ? "not scheduled" : "none due") : seconds < 1 ? "now" : `in ${duration(seconds)}`);
  setText(card.next.detail, next.why);
  setText(card.quota.value, `${count(quota.spent)} of ${count(quota.per_hour)}`);
  const bar = card.quotaBar.firstElementChild;
  bar.style.flexBasis = `${Math.min(100, (100 * quota.spent) / Math.max(1, quota.per_hour))}%`;
  setAttribute(bar, "class", quota.spent >= quota.per_hour ? "full" : null);
}

function updateFigures(card, { minute, committed, detail }) {
  setText(card.minute.value, rate(minute[`spooled_${unit()}`]));
  setText(card.minute.detail, `${rate(minute[`committed_${unit()}`])} committed`);
  for (const name of ["open", "sealed", "staged"]) {
    const depth = detail.by_state[name];
    setText(card[name].value, plural(depth.shards, "shard"));
    setText(card[name].detail, depth.shards ? `${plural(depth.rows, "row")}, ${bytes(depth.bytes)}` : "–");
  }
  const { queue } = detail;
  setText(card.queue.value, queue === null ? "–" : plural(queue.batches, "batch"));
  const refused = queue === null ? [] : ["blocked", "raised", "dropped"].filter((name) => queue[name]).map((name) => `${count(queue[name])} ${name}`);
  setText(card.queue.detail, queue === null ? "no job is running" : [`${bytes(queue.bytes)} of ${bytes(queue.max_bytes)}`, ...refused].join(", "));
  setText(card.committed.value, plural(committed.rows, "row"));
  setText(card.committed.detail, `${bytes(committed.bytes)} in ${plural(committed.shards, "shard")}`);
}

function updatePlots(card, { now, info }) {
  const { minute, detail: { series, commits } } = info, kind = unit();
  const spooled = series[`spooled_${kind}`], committed = series[`committed_${kind}`], waiting = series[`waiting_${kind}`];
  const quarterHour = { minutesAgo: [15, 10, 5, 0], span: 15 };
  timePlot(card.throughput.plot, {
    label: `Throughput in the last 15 minutes. Spooled: ${rate(minute[`spooled_${kind}`])} over the last minute, ${rate(Math.max(...spooled))} at most. ` +
      `Committed: ${rate(minute[`committed_${kind}`])} over the last minute, ${rate(Math.max(...committed))} at most.`,
    series: [{ values: spooled, kind: "area", tone: "spooled" }, { values: movingAverage(committed, 60 / series.step_s), kind: "line", tone: "committed" }],
    format: axis.rate, ...quarterHour,
  });
  timePlot(card.waiting.plot, {
    label: `Waiting in the spool in the last 15 minutes: ${amount(waiting.at(-1))} now, ${amount(Math.max(...waiting))} at most.`,
    series: [{ values: waiting, kind: "area", tone: "waiting" }], format: axis.amount, ...quarterHour,
  });
  markPlot(card.commits.plot, {
    label: commits.length
      ? `Commits in the last hour: ${count(commits.length)}, the last ${ago(commits.at(-1).at, now)}; the largest ${amount(Math.max(...commits.map((commit) => commit[kind])))}.`
      : "Commits in the last hour: none.",
    marks: commits.map((commit) => ({
      share: Math.max(0, 1 - (now - commit.at) / 3600), value: commit[kind],
      title: `${clock(commit.at, now)}: ${plural(commit.rows, "row")}, ${bytes(commit.bytes)} in ${plural(commit.shards, "shard")}`,
    })),
    format: axis.amount, minutesAgo: [60, 40, 20, 0], span: 60, tone: "committed",
  });
  updatePlotTables(card, series, { now, commits, spooled, committed, waiting });
}

// Commits come in bursts. Averaged over a minute, they can be compared with what is spooled.
function movingAverage(values, width) {
  return values.map((_, n) => {
    const window = values.slice(Math.max(0, n + 1 - width), n + 1);
    return window.reduce((sum, value) => sum + value, 0) / window.length;
  });
}

function updatePlotTables(card, series, { now, commits, spooled, committed, waiting }) {
  const steps = 60 / series.step_s;
  const minutes = Array.from({ length: spooled.length / steps }, (_, n) => n).reverse();
  const mean = (values, n) => values.slice(n * steps, (n + 1) * steps).reduce((sum, value) => sum + value, 0) / steps;
  const name = (n) => clock(series.start + n * 60, now).slice(0, -3);
  const { throughput, waiting: depth, commits: list } = card;
  if (throughput.details.open) updateRows(throughput.body, minutes, (n) => n, (n) => [[name(n)], [rate(mean(spooled, n)), "n"], [rate(mean(committed, n)), "n"]]);
  if (depth.details.open) updateRows(depth.body, minutes, (n) => n, (n) => [[name(n)], [amount(waiting[(n + 1) * steps - 1]), "n"]]);
  if (list.details.open) {
    updateRows(list.body, [...commits].reverse(), (commit) => commit.sha, (commit) => [
      [clock(commit.at, now), "short"], [commit.sha.slice(0, 8), "", commit.url], [count(commit.shards), "n"], [count(commit.rows), "n"], [bytes(commit.bytes), "n"],
    ]);
  }
}

function updateSection(section, items, note, emptyText) {
  setText(section.note, note);
  section.empty.hidden = items.length > 0;
  section.table.hidden = items.length === 0;
  setText(section.empty, emptyText);
}

function updateShards(section, { now, info }) {
  updateSection(section, info.detail.shards, "next to be committed, and committed last", "No shard yet.");
  updateList(section.body, info.detail.shards, (shard) => shard.id,
    () => element("tr", {}, element("td", {}, element("span"), element("span", { class: "under" })), element("td", { class: "short" }), element("td", { class: "n wide" }), element("td", { class: "n wide" }), element("td", { class: "n" })),
    (row, shard) => {
      const [path, state, rows, size, when] = row.children;
      setLink(path.children[0], shard.path ?? `being written by ${shard.writer}`, shard.url);
      setText(path.children[1], `${plural(shard.rows, "row")}, ${bytes(shard.bytes)}`);
      setTag(state, shard.state, shard.state);
      setText(rows, count(shard.rows));
      setText(size, bytes(shard.bytes));
      setText(when, ago(shard.at, now));
    });
}

function updateChanges(section, spool) {
  const { changes } = spool.info.detail;
  updateSection(section, changes, "", rejectedOf(spool) ? "No state changes. For rejected and lost rows, see the dead letter." : "No state changes and no errors.");
  updateList(section.body, changes, (change) => `${change.at} ${change.kind}`,
    () => element("tr", {}, element("td", { class: "short" }), element("td", { class: "short" }), element("td")),
    (row, change) => {
      setText(row.children[0], clock(change.at, spool.now));
      setTag(row.children[1], change.kind, change.kind);
      setText(row.children[2], change.reason || (change.kind === "ok" ? "recovered" : ""));
    });
}

function updateRejected(section, { spool, now, info }) {
  const all = rejectedOf({ info });
  const note = all ? `${all}. To inspect: hubsync dead-letter list ${spool}` : "";
  updateSection(section, info.detail.rejected, note, "Empty: nothing was rejected or lost.");
  updateRows(section.body, info.detail.rejected, (group) => group.why, (group) => [
    [group.shards === 1 && group.path ? `${group.path}: ${group.why}` : group.why], [count(group.shards), "n"], [count(group.rows), "n"], [count(group.lost), "n"], [group.at === null ? "–" : ago(group.at, now), "n"],
  ]);
}

function updateProcesses(section, { processes }) {
  updateSection(section, processes, "", "No process has this spool open.");
  const role = (process) => [process.writer && "writes", process.commits && "commits"].filter(Boolean).join(" and ") || "–";
  const heartbeat = (process) => (process.alive ? "now" : `${shortDuration(process.heartbeat_age_s)} ago, ${process.exists ? "stopped" : "ended"}`);
  updateRows(section.body, processes, (process) => process.writer ?? `pid ${process.pid}`, (process) => [
    [`${process.pid ?? "?"}${process.writer ? ` (${process.writer})` : ""}`, "words"], [role(process), "words"],
    [process.rows === null ? "–" : count(process.rows), "n"], [process.retries === null ? "–" : count(process.retries), "n wide"], [heartbeat(process), "n words"],
  ]);
}
