// Plots as SVG, drawn at the size of their place so that text is not scaled. Each is one image whose label gives its
// figures in words; the page also has them as a table.

const NS = "http://www.w3.org/2000/svg";
const LEFT = 4, RIGHT = 4, TOP = 18, BOTTOM = 18;

function createShape(tag, attributes, text) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// The next round number: 1, 2 or 5 times a power of ten.
function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 4, 5, 6, 8, 10].map((n) => n * power).find((n) => n >= value * 0.999999);
}

// An empty plot in `place` with its grid and axes; null if there is no room. `minutesAgo`: where the time axis is labelled.
function frame(place, label, most, format, minutesAgo, span) {
  const width = place.clientWidth, height = place.clientHeight;
  if (width < 40 || height < 40) return null;
  const svg = createShape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const top = roundUp(most), low = height - BOTTOM, high = TOP;
  const y = (value) => low - (Math.min(value, top) / top) * (low - high);
  const x = (share) => LEFT + share * (width - LEFT - RIGHT);
  for (const value of [0, top / 2, top]) {
    const at = Math.round(y(value)) + 0.5;
    svg.append(createShape("line", { class: "grid", x1: x(0), x2: x(1), y1: at, y2: at }));
    if (value > 0 && most > 0) svg.append(createShape("text", { x: x(0), y: at - 4 }, format(value)));
  }
  for (const minutes of minutesAgo) {
    const share = 1 - minutes / span;
    const anchor = share < 0.01 ? "start" : share > 0.99 ? "end" : "middle";
    svg.append(createShape("text", { x: x(share), y: height - 4, "text-anchor": anchor }, minutes ? `−${minutes} min` : "now"));
  }
  return { svg, x, y };
}

// Replace the plot only if it changed, so that a screen reader keeps its position.
function replaceIfChanged(place, svg) {
  const old = place.firstElementChild;
  if (old && svg && old.outerHTML === svg.outerHTML) return;
  place.replaceChildren(...(svg ? [svg] : []));
}

// `series`: [{ values, kind: "area" | "line", tone }], a value a step, the last one now.
export function timePlot(place, { label, series, format, minutesAgo, span }) {
  const plot = frame(place, label, Math.max(...series.flatMap(({ values }) => values), 0), format, minutesAgo, span);
  if (!plot) return;
  const { svg, x, y } = plot;
  for (const { values, kind, tone } of series) {
    const group = createShape("g", { class: tone });
    const step = 1 / values.length;
    const at = (share, value) => `${x(share).toFixed(1)},${y(value).toFixed(1)}`;
    const points = values.map((value, n) => at((n + 0.5) * step, value));
    if (kind === "area") {
      group.append(createShape("polygon", { class: "area", points: [at(step / 2, 0), ...points, at(1 - step / 2, 0)].join(" ") }));
    }
    group.append(createShape("polyline", { class: `line ${kind}-line`, points: points.join(" ") }));
    svg.append(group);
  }
  replaceIfChanged(place, svg);
}

// `marks`: [{ share, value, title }], one column each.
export function markPlot(place, { label, marks, format, minutesAgo, span, tone }) {
  const plot = frame(place, label, Math.max(...marks.map((mark) => mark.value), 0), format, minutesAgo, span);
  if (!plot) return;
  const group = createShape("g", { class: tone });
  const gaps = marks.slice(1).map((mark, n) => plot.x(mark.share) - plot.x(marks[n].share));
  const width = Math.max(1, Math.min(3, ...gaps.map((gap) => gap * 0.6)));
  for (const { share, value, title } of marks) {
    const bar = createBar(plot.x(share) - width / 2, plot.y(value), width, plot.y(0));
    bar.append(createShape("title", {}, title));
    group.append(bar);
  }
  plot.svg.append(group);
  replaceIfChanged(place, plot.svg);
}

function createBar(x, y, width, low) {
  const height = Math.max(1, low - y);
  return createShape("rect", { class: "column", x: x.toFixed(1), y: (low - height).toFixed(1), width: width.toFixed(1), height: height.toFixed(1), rx: 1 });
}
