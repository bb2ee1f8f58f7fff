// An answer's text with its tags: <|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2], …]<|/det|>, coordinates 0…999.

const TAGS = /<\|ref\|>([^]*?)<\|\/ref\|>|<\|det\|>([^]*?)<\|\/det\|>|<\|grounding\|>/g;
const UNFINISHED = /<(?:\|[^]*)?$/; // a tag that is still being written

/** Text → parts in order: a string, or {label, idx} of the idx-th object. Coordinates are left out. */
export function parts(text, isDone) {
  const found = [];
  let [end, idx] = [0, 0];
  for (const match of text.matchAll(TAGS)) {
    found.push(text.slice(end, match.index));
    if (match[1] !== undefined) found.push({ label: match[1], idx: idx++ });
    end = match.index + match[0].length;
  }
  const rest = text.slice(end);
  found.push(isDone ? rest : rest.replace(UNFINISHED, ""));
  return found.filter((part) => part !== "");
}

/** The text without its tags, for people. */
export const plainText = (text) => parts(text, true).map((part) => part.label ?? part).join("");

/** The objects that are complete so far, in pixels: [{label, boxes}]. When the answer has ended the server's count. */
export function objectsSoFar(text, { width, height }) {
  const objects = [];
  for (const [, label, boxes] of text.matchAll(TAGS)) {
    if (label !== undefined) objects.push({ label, boxes: [] });
    else if (boxes !== undefined && objects.length) objects.at(-1).boxes = toPixels(boxes, width, height);
  }
  return objects;
}

function toPixels(text, width, height) {
  const found = text.match(/\d+/g) ?? [];
  const boxes = [];
  for (let at = 0; at + 4 <= found.length; at += 4) {
    const [x1, y1, x2, y2] = found.slice(at, at + 4).map((value) => Math.min(999, Number(value)) / 999);
    boxes.push([Math.min(x1, x2) * width, Math.min(y1, y2) * height, Math.max(x1, x2) * width, Math.max(y1, y2) * height].map(Math.floor));
  }
  return boxes;
}
