// Boxes as files: the picture with them drawn, and the numbers.

import { download } from "./dom.js";
import { drawBoxes } from "./figure.js";
import { drawn, loadImage, stem } from "./pictures.js";

/** PNG of the picture's own size. */
export async function withBoxes(picture, objects) {
  const { width, height } = picture;
  const canvas = drawn(await loadImage(picture.url), width, height);
  const boxes = document.createElement("canvas"); // of its own: drawBoxes may clear
  [boxes.width, boxes.height] = [width, height];
  drawBoxes(boxes.getContext("2d"), { width, height, scale: 1 }, objects, null);
  canvas.getContext("2d").drawImage(boxes, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

export async function savePng(picture, objects) {
  download(await withBoxes(picture, objects), `${stem(picture)}-boxes.png`);
}

export function saveJson(picture, objects, question, answer) {
  const { name, width, height } = picture;
  const told = { picture: { name, width, height }, question, answer, objects };
  download(new Blob([JSON.stringify(told, null, 2)], { type: "application/json" }), `${stem(picture)}-boxes.json`);
}
