// Figures, times and states in words.

const integer = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const upToThree = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const threeDigits = new Intl.NumberFormat("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 });

export const count = (n) => integer.format(n);
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : word.endsWith("ch") ? "es" : "s"}`;

export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (n >= 999.5 && at < units.length - 1) [n, at] = [n / 1000, at + 1];
  return `${(at > 0 && n < 100 ? threeDigits : n < 10 ? upToThree : integer).format(n)} ${units[at]}`;
}

function short(n) {
  if (n < 1000) return upToThree.format(n);
  return n < 999_500 ? `${upToThree.format(n / 1000)}k` : `${upToThree.format(n / 1e6)}M`;
}

export const unit = () => document.querySelector("input[name=unit]:checked").value;
export const amount = (n) => (unit() === "bytes" ? bytes(n) : `${short(n)} rows`);
export const rate = (n) => `${amount(n)}/s`;
// On an axis, "2.00 MB" is "2 MB".
const trimZeros = (text) => text.replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "");
export const axis = { amount: (n) => trimZeros(amount(n)), rate: (n) => trimZeros(rate(n)) };

const twoDigits = (n) => String(Math.floor(n)).padStart(2, "0");

export function duration(s) {
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${twoDigits(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${twoDigits((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export const shortDuration = (s) => (s < 60 ? `${Math.floor(s)} s` : duration(s).split(" ").slice(0, 2).join(" "));
export const ago = (at, now) => (now - at < 1 ? "now" : `${shortDuration(now - at)} ago`);

export function clock(at, now) {
  const date = new Date(at * 1000);
  const time = date.toLocaleTimeString("en-GB");
  return Math.abs(now - at) < 72000 ? time : `${date.toLocaleDateString("sv-SE")} ${time}`;
}

// States: a label, a tone (colour), and a shape, since colour alone tells many people nothing.

const CIRCLE = "M5 0a5 5 0 1 0 0 10A5 5 0 0 0 5 0";
const TRIANGLE = "M5 0.5 10 9.5H0Z";
const SQUARE = "M0.5 0.5h9v9h-9Z";
const RING = "M5 0a5 5 0 1 0 0 10A5 5 0 0 0 5 0m0 2.2a2.8 2.8 0 1 1 0 5.6 2.8 2.8 0 0 1 0-5.6";
const STATES = {
  unknown: { label: "Unknown", tone: "error", shape: SQUARE },
  blocked: { label: "Blocked", tone: "error", shape: SQUARE },
  rejected: { label: "Rows rejected", tone: "error", shape: SQUARE },
  waiting: { label: "Waiting", tone: "warning", shape: TRIANGLE },
  uploading: { label: "Uploading", tone: "ok", shape: CIRCLE },
  finished: { label: "Finished", tone: "idle", shape: RING },
};
const capitalize = (text) => (text ? text[0].toUpperCase() + text.slice(1) : "");

export function stateOf({ info, problem }) {
  if (info?.condition.kind === "waiting" && !info.alive) return { label: "Not running", tone: "warning", shape: RING };
  if (!problem) return STATES[info.condition.kind] ?? { label: info.condition.kind, tone: "idle", shape: RING };
  const label = capitalize(problem.kind);
  return problem.kind === "missing" ? { label, tone: "idle", shape: RING } : { label, tone: "error", shape: SQUARE };
}

// What needs attention and what to do about it; empty if nothing does.
export function reasonOf({ info, now }) {
  if (!info || !["unknown", "blocked", "waiting"].includes(info.condition.kind)) return "";
  const { reason, until, command } = info.condition;
  const text = reason === "commit quota" ? "The Hub's commit quota is used up" : capitalize(reason);
  const next = until === null ? "" : until <= now ? " Retrying now." : ` Next attempt at ${clock(until, now)}.`;
  const kept = info.waiting.rows ? ` ${plural(info.waiting.rows, "row")} not on the Hub yet, safe in the spool.` : "";
  return `${text}${/[.!?]$/.test(text) ? "" : "."}${next}${kept}${command ? ` To upload: ${command}` : ""}`;
}

// "3 rows in the dead letter and 2 lost rows", or empty.
export function rejectedOf({ info }) {
  if (!info) return "";
  const { rejected, lost_rows: lost } = info;
  const kept = rejected.rows || (rejected.shards && !lost);
  return [
    kept ? `${rejected.rows ? plural(rejected.rows, "row") : plural(rejected.shards, "shard")} in the dead letter` : "",
    lost ? plural(lost, "lost row") : "",
  ].filter(Boolean).join(" and ");
}
