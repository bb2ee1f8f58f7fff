// Nodes from code. Text is always text: nothing here, or anywhere on the page, reads a string as HTML.

export const $ = (id) => document.getElementById(id);

/** el("button", {class: "small", onclick: f, disabled: true}, icon("copy"), "Copy"); empty children are left out. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "textContent") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child || child === 0));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** One of the symbols at the end of index.html. */
export const icon = (name) => svg("svg", { "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));

/** What is said to those who do not see the page. */
export function say(text) {
  $("spoken").textContent = text;
}

/** A time, as people read it. */
export const short = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);

/** A button that is an icon with a name. */
export function iconButton(name, label, onclick, props = {}) {
  return el("button", { type: "button", class: "icon plain", "aria-label": label, title: label, onclick, ...props }, icon(name));
}

/** Ready to type; where that would raise a keyboard over half of the screen, only on request. */
export function focusQuestion() {
  if (!matchMedia("(pointer: coarse)").matches) $("question").focus();
}

/** Save a Blob under a name. */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
