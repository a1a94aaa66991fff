// Small DOM helpers. Updates touch only what changed, so that focus and the scroll position survive each refresh.
// Text from a spool or a server (paths, errors) is only ever set as text, never as HTML.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

export function setAttribute(target, name, value) {
  if (value === null) target.removeAttribute(name);
  else if (target.getAttribute(name) !== value) target.setAttribute(name, value);
}

// Show `text` in `target`, as a link if `url` is a web address.
export function setLink(target, text, url) {
  let inner = target.firstElementChild;
  const tag = url && /^https?:\/\//.test(url) ? "A" : "SPAN";
  if (!inner || inner.tagName !== tag) {
    inner = document.createElement(tag);
    if (tag === "A") inner.rel = "noreferrer";
    target.replaceChildren(inner);
  }
  if (tag === "A") setAttribute(inner, "href", url);
  setText(inner, text);
}

// Show a word with a coloured dot; the colour belongs to `mark`.
export function setTag(target, text, mark) {
  if (!target.firstElementChild) target.append(element("span", { class: "tag" }));
  setAttribute(target.firstElementChild, "data-mark", mark);
  setText(target.firstElementChild, text);
}

const childrenByKey = new WeakMap();

// Make the children of `parent` match `items`, in order: `create` a child per new key, `update` each.
export function updateList(parent, items, key, create, update) {
  const old = childrenByKey.get(parent) ?? new Map();
  const current = new Map();
  items.forEach((item, position) => {
    const name = key(item);
    const child = old.get(name) ?? create(item);
    current.set(name, child);
    update(child, item);
    if (parent.children[position] !== child) parent.insertBefore(child, parent.children[position] ?? null);
  });
  for (const [name, child] of old) if (current.get(name) !== child) child.remove();
  childrenByKey.set(parent, current);
}

// Fill a table body with rows of [text, class, url] cells.
export function updateRows(body, items, key, cellsOf) {
  const create = (item) => element("tr", {}, ...cellsOf(item).map(([, kind]) => element("td", { class: kind || null })));
  updateList(body, items, key, create, (row, item) =>
    cellsOf(item).forEach(([text, , url], n) => (url === undefined ? setText(row.children[n], text) : setLink(row.children[n], text, url))));
}

export function createTable(caption, columns) {
  const body = element("tbody");
  const cells = columns.map(([name, kind = ""]) => element("th", { scope: "col", class: kind || null }, name));
  const head = element("thead", {}, element("tr", {}, ...cells));
  return { table: element("table", {}, element("caption", { class: "visually-hidden" }, caption), head, body), body };
}
