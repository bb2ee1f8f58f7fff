// One turn of the conversation on the page: a question with its pictures, or an answer with its boxes.

import { el, icon, say, short } from "./dom.js";
import { colourOf, pictureFigure } from "./figure.js";
import { regionSelector } from "./region.js";
import { saveJson, savePng } from "./save.js";
import { objectsSoFar, parts, plainText } from "./tags.js";
import { t } from "./texts.js";

const action = (name, label, onclick, title = label) =>
  el("button", { type: "button", class: `small plain ${name}`, title, "aria-label": title !== label && title, onclick }, icon(name), el("span", {}, label));

/** A figure that can be enlarged, and asked about a region of. `on`: {view(picture, objects), ask(picture, kind, region)}.
 *
 * `more`: options of `pictureFigure`.
 */
export function pictureToAsk(picture, on, more = {}) {
  const figure = pictureFigure(picture, { label: picture.name, openLabel: t.enlarge(picture.name), onOpen: () => on.view(picture, []), ...more });
  regionSelector(figure, picture, { onAsk: (kind, region) => on.ask(picture, kind, region) });
  return figure;
}

/** `on`: as above, with edit(turn). */
export function questionNode(turn, on) {
  const figures = turn.pictures.map((picture) => pictureToAsk(picture, on).node);
  const text = turn.text && el("p", { class: "said" }, ...words(turn.text, true));
  return el(
    "article",
    { class: "question", "aria-label": t.you },
    figures.length ? el("div", { class: "figures" }, ...figures) : null,
    text,
    el("div", { class: "actions" }, action("edit", t.edit, () => on.edit(turn))),
  );
}

const words = (text, isDone) =>
  parts(text, isDone).map((part) => (typeof part === "string" ? part : el("span", { class: "object asked" }, icon("locate"), part.label)));

/** {node, update()}: `update` shows what `turn` has become. `picture`: what its boxes are about, or undefined.
 *
 * `on`: as above, with retry(turn) and request(turn).
 */
export function answerNode(turn, picture, question, on) {
  const text = el("p", { class: "said" });
  const below = el("div", { class: "below" });
  const node = el("article", { class: "answer", "aria-label": "vl2" }, text, below);
  let [figure, drawn, lit] = [null, [], null];

  function light(idx) {
    if (idx === lit) return;
    lit = idx;
    figure?.show(drawn, lit);
    for (const word of text.querySelectorAll(".object")) word.classList.toggle("lit", Number(word.dataset.idx) === lit);
  }

  function update() {
    node.classList.toggle("running", Boolean(turn.isRunning));
    node.classList.toggle("failed", Boolean(turn.error));
    const isWhole = turn.reason === "stop"; // then the server has said what is well-formed
    drawn = !picture ? [] : turn.grounding ?? (isWhole ? [] : objectsSoFar(turn.text, picture));
    const hasBoxes = drawn.some(({ boxes }) => boxes.length);
    if (hasBoxes && !figure) figure = addFigure();
    figure?.show(drawn, lit);
    text.replaceChildren(...answerWords(hasBoxes));
    text.classList.toggle("json", isJson(turn));
    text.hidden = !turn.text && !turn.isRunning;
    if (!turn.isRunning) below.replaceChildren(...ending(hasBoxes));
  }

  function addFigure() {
    const made = pictureToAsk(picture, on, { onPoint: light, onOpen: () => on.view(picture, drawn) });
    text.after(made.node);
    return made;
  }

  function answerWords(hasBoxes) {
    if (isJson(turn)) return [JSON.stringify(JSON.parse(turn.text), null, 2)];
    return parts(turn.text, !turn.isRunning).map((part) => (typeof part === "string" ? part : objectWord(part, hasBoxes)));
  }

  function objectWord({ label, idx }, hasBoxes) {
    const boxes = drawn[idx]?.boxes ?? [];
    const isLinked = hasBoxes && boxes.length > 0;
    const told = isLinked ? t.boxAt(label, boxes) : null;
    const word = el(isLinked ? "button" : "span", { class: "object", type: isLinked && "button", "data-idx": idx, title: told, "aria-label": isLinked && told }, label);
    word.style.setProperty("--colour", colourOf(idx));
    if (isLinked) {
      for (const event of ["pointerenter", "focus"]) word.addEventListener(event, () => light(idx));
      for (const event of ["pointerleave", "blur"]) word.addEventListener(event, () => light(null));
    }
    return word;
  }

  function ending(hasBoxes) {
    if (turn.error) {
      return [el("p", { class: turn.isLost ? "error lost" : "error", role: "alert" }, turn.error), el("div", { class: "actions" }, action("retry", t.retry, () => on.retry(turn)))];
    }
    const boxes = hasBoxes
      ? [action("save", t.savePng, () => savePng(picture, drawn), t.savePngLong), action("json", t.saveJson, () => saveJson(picture, drawn, question, turn.text), t.saveJsonLong)]
      : [];
    return [
      el(
        "div",
        { class: "actions" },
        action("copy", t.copy, (event) => copy(plainText(turn.text), event.currentTarget)),
        action("retry", t.retry, () => on.retry(turn)),
        ...boxes,
        action("code", t.showRequest, () => on.request(turn)),
      ),
      notes(turn),
    ];
  }

  update();
  return { node, update };
}

function isJson(turn) {
  if (!turn.isJson || turn.isRunning) return false;
  try {
    JSON.parse(turn.text);
    return true;
  } catch {
    return false; // cut off, or stopped
  }
}

/** What the answer took: words, and a bar of where the time went. */
function notes({ usage, reason, first, whole }) {
  const cached = usage?.prompt_tokens_details.cached_tokens;
  const said = [
    { stopped: t.stopped, length: t.cut }[reason],
    usage && t.usage(usage),
    cached ? t.cached(cached) : null,
    usage?.from_result_cache && t.fromResults,
    first && t.took(short(first), short(whole)),
  ];
  return el("div", { class: "note" }, el("span", {}, said.filter(Boolean).join(" · ")), usage?.timing && timingBar(usage.timing));
}

function timingBar(timing) {
  const stages = Object.entries(t.stages).map(([name, label]) => [label, timing[name] * 1000]);
  const told = stages.map(([label, ms]) => `${label} ${short(ms)}`).join(" · ");
  const bar = el("span", { class: "timing", role: "img", "aria-label": told, title: told });
  stages.forEach(([, ms], idx) => {
    const part = el("span", { class: `stage-${idx}` });
    part.style.setProperty("flex-grow", Math.max(ms, 0.001));
    bar.append(part);
  });
  return bar;
}

/** To the clipboard, or where a page may not use it (plain http), by way of a selection. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = el("textarea", { class: "unseen", value: text });
    (button.closest("dialog") ?? document.body).append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  say(t.copied);
  const label = button.querySelector("span");
  const before = label.textContent;
  if (before === t.copied) return; // clicked again: the first click puts the label back
  label.textContent = t.copied;
  setTimeout(() => (label.textContent = before), 1500);
}
