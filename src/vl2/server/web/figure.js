// A picture on the page, with boxes on a canvas over it, and a region that can be dragged out.

import { el } from "./dom.js";

// Told apart on light and dark ground, and by people who do not see all colours; white on them reads well (4.5:1).
const COLOURS = ["#c2410c", "#1d64c8", "#247a3a", "#9a33ae", "#b71f55", "#0b7285", "#8a5a00", "#5f3dc4"];
export const colourOf = (idx) => COLOURS[idx % COLOURS.length];

const LABEL_HEIGHT = 22;

/** {node, show(objects, lit)}: `objects` are [{label, boxes: [[x1, y1, x2, y2] pixels]}], `lit` the one that is pointed at.
 *
 * `onPoint(idx | null)` tells which object the pointer is on; `onOpen()` is called on a click or Enter.
 */
export function pictureFigure(picture, { label, openLabel, onPoint, onOpen }) {
  const image = el("img", { src: picture.url, alt: label, width: picture.width, height: picture.height, draggable: "false" });
  const canvas = el("canvas", { "aria-hidden": true }); // what it shows stands in the answer as text
  const frame = onOpen ? el("button", { type: "button", class: "frame", "aria-label": openLabel, onclick: onOpen }, image, canvas) : el("div", { class: "frame" }, image, canvas);
  const node = el("figure", {}, frame);
  node.style.setProperty("--ratio", picture.width / picture.height);
  node.style.setProperty("--width", picture.width);
  let [objects, lit] = [[], null];
  const redraw = () => {
    const density = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = [Math.round(width * density), Math.round(height * density)];
    const context = canvas.getContext("2d");
    context.scale(density, density);
    drawBoxes(context, { width, height, scale: width / picture.width }, objects, lit);
  };
  new ResizeObserver(redraw).observe(frame);
  if (onPoint) {
    frame.addEventListener("pointermove", (event) => onPoint(objectAt(objects, pixelOf(event, frame, picture))));
    frame.addEventListener("pointerleave", () => onPoint(null));
  }
  return {
    node,
    frame,
    show(newObjects, newLit = null) {
      [objects, lit] = [newObjects, newLit];
      redraw();
    },
  };
}

/** Where the pointer is, in pixels of the picture. */
export function pixelOf(event, frame, picture) {
  const area = frame.getBoundingClientRect();
  return [((event.clientX - area.left) / area.width) * picture.width, ((event.clientY - area.top) / area.height) * picture.height];
}

/** The object with the smallest box around a pixel, or null. */
export function objectAt(objects, [x, y]) {
  let [found, least] = [null, Infinity];
  objects.forEach(({ boxes }, idx) => {
    for (const [x1, y1, x2, y2] of boxes) {
      const area = (x2 - x1) * (y2 - y1);
      if (x1 <= x && x <= x2 && y1 <= y && y <= y2 && area < least) [found, least] = [idx, area];
    }
  });
  return found;
}

/** `place`: the size to draw at, and how many of its pixels one of the picture's is. */
export function drawBoxes(context, place, objects, lit) {
  const { width, height, scale } = place;
  const rectangles = objects.flatMap(({ label, boxes }, idx) =>
    boxes.map(([x1, y1, x2, y2]) => ({ idx, label, box: [x1 * scale, y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale] })),
  );
  if (lit !== null && rectangles.some(({ idx }) => idx === lit)) {
    context.fillStyle = "#0009"; // what is not pointed at steps back
    context.fillRect(0, 0, width, height);
    for (const { idx, box } of rectangles) if (idx === lit) context.clearRect(...box);
  }
  const order = rectangles.filter(({ idx }) => idx !== lit).concat(rectangles.filter(({ idx }) => idx === lit));
  for (const { idx, box } of order) {
    context.globalAlpha = lit === null || lit === idx ? 1 : 0.3;
    if (lit === null) {
      context.fillStyle = colourOf(idx) + "1f";
      context.fillRect(...box);
    }
    for (const [style, line] of [["#fff", 5], [colourOf(idx), 3]]) {
      context.strokeStyle = style;
      context.lineWidth = line;
      context.strokeRect(...box);
    }
  }
  for (const rectangle of order) drawLabel(context, rectangle, place, lit); // above all boxes
  context.globalAlpha = 1;
}

function drawLabel(context, { idx, label, box: [left, top, , boxHeight] }, { width, height }, lit) {
  context.font = "600 13px system-ui, sans-serif";
  context.textBaseline = "middle";
  let shown = label;
  while (shown.length > 1 && context.measureText(shown).width > width - 16) shown = shown.slice(0, -2) + "…";
  const labelWidth = context.measureText(shown).width + 14;
  const x = Math.max(0, Math.min(left - 1.5, width - labelWidth));
  const below = top + boxHeight;
  const y = top >= LABEL_HEIGHT ? top - LABEL_HEIGHT : below + LABEL_HEIGHT <= height ? below : Math.max(0, top); // else inside
  context.globalAlpha = lit === null || lit === idx ? 1 : 0.3;
  context.fillStyle = colourOf(idx);
  context.beginPath();
  context.roundRect(x, y, labelWidth, LABEL_HEIGHT, 4);
  context.fill();
  context.fillStyle = "#fff";
  context.fillText(shown, x + 7, y + LABEL_HEIGHT / 2 + 1);
}
