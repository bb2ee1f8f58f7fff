// Dragging out a part of a picture, or moving it with the arrow keys, and what may be asked about it.

import { el, icon } from "./dom.js";
import { pixelOf } from "./figure.js";
import { t } from "./texts.js";

const MIN_DRAG = 6; // CSS pixels; less is a click
const STEP = 0.02; // of a side, for a key

/** `figure` is one of figure.js. `onAsk(kind, [x1, y1, x2, y2])`: "crop" or "frame"; `onChange(region | null)`.
 *
 * With a finger only where `withTouch`: elsewhere it scrolls the page. Returns {start()}, for the keyboard.
 */
export function regionSelector(figure, picture, { onAsk, onChange = () => {}, withTouch = false }) {
  const { node, frame } = figure;
  let [region, from] = [null, null];

  const choose = (kind) => {
    const chosen = region;
    show(null);
    onAsk(kind, chosen);
  };
  const outline = el("div", { class: "region", tabindex: "0", role: "group", hidden: true, onkeydown: onKey });
  const tools = el(
    "div",
    { class: "region-tools", hidden: true },
    el("button", { type: "button", class: "small", onclick: () => choose("crop") }, icon("region"), t.askCrop),
    el("button", { type: "button", class: "small", onclick: () => choose("frame") }, icon("frame"), t.askFrame),
    el("button", { type: "button", class: "small", "aria-label": t.close, onclick: () => show(null) }, icon("close")),
  );
  node.append(outline, tools);
  if (withTouch) frame.classList.add("selectable");

  function show(corners, isDone = true) {
    region = corners && toRegion(corners);
    outline.hidden = !region;
    tools.hidden = !region || !isDone;
    onChange(region);
    if (!region) return;
    const [x1, y1, x2, y2] = region;
    const percent = (value, side) => `${(value / side) * 100}%`;
    for (const [name, value] of [
      ["left", percent(x1, picture.width)],
      ["top", percent(y1, picture.height)],
      ["width", percent(x2 - x1, picture.width)],
      ["height", percent(y2 - y1, picture.height)],
    ]) outline.style.setProperty(name, value);
    tools.style.setProperty("top", `min(${percent(y2, picture.height)} + 0.4rem, 100% - 2.6rem)`);
    tools.style.setProperty("left", `clamp(0px, ${percent(x1, picture.width)}, 100% - ${tools.offsetWidth}px)`);
    outline.setAttribute("aria-label", t.region(...region));
  }

  /** Whole pixels in order, within the picture, at least one each way. */
  function toRegion([x1, y1, x2, y2]) {
    const within = (value, side) => Math.max(0, Math.min(side, Math.round(value)));
    const [left, right] = [x1, x2].map((x) => within(x, picture.width)).sort((a, b) => a - b);
    const [top, bottom] = [y1, y2].map((y) => within(y, picture.height)).sort((a, b) => a - b);
    return [Math.min(left, picture.width - 1), Math.min(top, picture.height - 1), Math.max(right, left + 1), Math.max(bottom, top + 1)];
  }

  frame.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || (event.pointerType !== "mouse" && !withTouch)) return;
    from = { at: pixelOf(event, frame, picture), x: event.clientX, y: event.clientY, isDrag: false };
    frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    if (!from) return;
    from.isDrag ||= Math.hypot(event.clientX - from.x, event.clientY - from.y) >= MIN_DRAG;
    if (from.isDrag) show([...from.at, ...pixelOf(event, frame, picture)], false);
  });
  frame.addEventListener("pointerup", (event) => {
    if (!from) return;
    if (from.isDrag) {
      show([...from.at, ...pixelOf(event, frame, picture)]);
      frame.addEventListener("click", stopOnce, { capture: true, once: true }); // the drag's own
      setTimeout(() => frame.removeEventListener("click", stopOnce, { capture: true }));
    }
    from = null;
  });
  frame.addEventListener("pointercancel", () => {
    from = null;
    show(null);
  });

  function onKey(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!(event.key in moves) && event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault(); // Enter: else what has the focus next is pressed, too; Escape: the dialog stays
    if (event.key === "Enter") return choose("crop");
    if (event.key === "Escape") return show(null);
    const [dx, dy] = [moves[event.key][0] * STEP * picture.width, moves[event.key][1] * STEP * picture.height];
    const [x1, y1, x2, y2] = region;
    if (event.shiftKey) return show([x1, y1, Math.max(x1 + 1, x2 + dx), Math.max(y1 + 1, y2 + dy)]);
    const shiftX = Math.max(-x1, Math.min(picture.width - x2, dx));
    const shiftY = Math.max(-y1, Math.min(picture.height - y2, dy));
    show([x1 + shiftX, y1 + shiftY, x2 + shiftX, y2 + shiftY]);
  }

  return {
    start() {
      const { width, height } = picture;
      show([width / 4, height / 4, (width * 3) / 4, (height * 3) / 4]);
      outline.focus();
    },
  };
}

function stopOnce(event) {
  event.stopPropagation();
  event.preventDefault();
}
