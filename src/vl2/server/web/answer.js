// An answer's text with its tags → nodes: what is pointed at becomes a coloured word, coordinates are left out.

import { colourOf } from "./pictures.js";

const TAGS = /<\|ref\|>([^]*?)<\|\/ref\|>|<\|det\|>[^]*?<\|\/det\|>|<\|grounding\|>/g;
const UNFINISHED = /<(?:\|[^]*)?$/; // a tag that is still being written

/** `onPoint(idx)` is called with the number of an object while its word is pointed at, and null afterwards. */
export function renderAnswer(node, text, isDone, onPoint) {
  const parts = [];
  let end = 0;
  let idx = 0;
  for (const match of text.matchAll(TAGS)) {
    parts.push(text.slice(end, match.index));
    if (match[1] !== undefined) parts.push(objectWord(match[1], idx++, onPoint));
    end = match.index + match[0].length;
  }
  const rest = text.slice(end);
  parts.push(isDone ? rest : rest.replace(UNFINISHED, ""));
  node.replaceChildren(...parts);
}

function objectWord(label, idx, onPoint) {
  const word = document.createElement(onPoint ? "button" : "span");
  word.className = "object";
  word.textContent = label;
  word.style.setProperty("--colour", colourOf(idx));
  if (onPoint) {
    word.type = "button";
    for (const event of ["pointerenter", "focus"]) word.addEventListener(event, () => onPoint(idx));
    for (const event of ["pointerleave", "blur"]) word.addEventListener(event, () => onPoint(null));
  }
  return word;
}
