// Pictures: from files to what is sent, and onto the page with boxes drawn over them.

const MAX_SIDE = 2400; // pixels; the model sees less
const MAX_BYTES = 4 * 2 ** 20;
const AS_THEY_ARE = ["image/png", "image/webp"]; // others may be turned by EXIF, or unknown to the server

// Readable on light and dark ground, and told apart by people who do not see all colours.
export const COLOURS = ["#e8590c", "#1c7ed6", "#2f9e44", "#ae3ec9", "#c2255c", "#0c8599", "#e67700", "#5f3dc4"];
export const colourOf = (idx) => COLOURS[idx % COLOURS.length];

/** File → {url, width, height, name}, as shown: turned upright, and small enough to send. Throws when it is none. */
export async function loadPicture(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && file.size <= MAX_BYTES && AS_THEY_ARE.includes(file.type)) {
    return { url: await readAsDataUrl(file), width: bitmap.width, height: bitmap.height, name: file.name };
  }
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return { url: canvas.toDataURL("image/jpeg", 0.95), width: canvas.width, height: canvas.height, name: file.name };
}

function readAsDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** A picture on the page. `figure.boxes(grounding, highlighted)` draws what an answer points at. */
export function pictureFigure(picture, label) {
  const figure = document.createElement("figure");
  const image = document.createElement("img");
  const canvas = document.createElement("canvas");
  image.src = picture.url;
  image.alt = picture.name || label;
  image.width = picture.width;
  image.height = picture.height;
  canvas.setAttribute("aria-hidden", "true"); // the labels stand in the answer
  figure.append(image, canvas);
  let shown = [[], null];
  const redraw = () => drawBoxes(canvas, picture, ...shown);
  new ResizeObserver(redraw).observe(figure);
  figure.boxes = (grounding, highlighted = null) => {
    shown = [grounding, highlighted];
    redraw();
  };
  return figure;
}

function drawBoxes(canvas, picture, grounding, highlighted) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  const context = canvas.getContext("2d");
  context.scale(density, density);
  const labels = [];
  grounding.forEach((object, idx) => {
    const isFaint = highlighted !== null && highlighted !== idx;
    for (const [x1, y1, x2, y2] of object.boxes) {
      const left = (x1 / picture.width) * width;
      const top = (y1 / picture.height) * height;
      const box = [left, top, ((x2 - x1) / picture.width) * width, ((y2 - y1) / picture.height) * height];
      context.globalAlpha = isFaint ? 0.25 : 1;
      context.strokeStyle = "#fff";
      context.lineWidth = 5;
      context.strokeRect(...box);
      context.strokeStyle = colourOf(idx);
      context.lineWidth = 3;
      context.strokeRect(...box);
      context.fillStyle = colourOf(idx) + (highlighted === idx ? "40" : "14");
      context.fillRect(...box);
      labels.push({ text: object.label, left, top, colour: colourOf(idx), isFaint });
    }
  });
  for (const label of labels) drawLabel(context, label, width, height); // above all boxes
}

function drawLabel(context, { text, left, top, colour, isFaint }, width, height) {
  context.font = "600 13px system-ui, sans-serif";
  context.textBaseline = "middle";
  let shown = text;
  while (shown.length > 1 && context.measureText(shown).width > width - 16) shown = shown.slice(0, -2) + "…";
  const labelWidth = context.measureText(shown).width + 12;
  const x = Math.max(0, Math.min(left - 1, width - labelWidth));
  const y = Math.min(top >= 20 ? top - 20 : top, height - 20); // above its box, or inside at the picture's edge
  context.globalAlpha = isFaint ? 0.25 : 1;
  context.fillStyle = colour;
  context.fillRect(x, y, labelWidth, 20);
  context.fillStyle = "#fff";
  context.fillText(shown, x + 6, y + 10.5);
}
