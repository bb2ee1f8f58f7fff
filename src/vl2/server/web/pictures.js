// Pictures: from a file, a URL or a canvas to {url, width, height, name}, upright and small enough to send.

import { serverPictures } from "./api.js";

const MAX_SIDE = 2400; // pixels; the model sees less
const MAX_BYTES = 4 * 2 ** 20;
const AS_THEY_ARE = ["image/png", "image/webp"]; // others may be turned by EXIF, or unknown to the server

/** File → its pictures: one, or a PDF's pages; `askPages(name, why)` names some where there are too many.
 *
 * Throws what `serverPictures` throws, or an Error when it is no picture.
 */
export async function loadPictures(file, askPages) {
  if (await isForTheServer(file)) return fromServer(await readAsDataUrl(file), file.name, askPages);
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return fromServer(await readAsDataUrl(file), file.name); // a TIFF, or what is no picture at all
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && file.size <= MAX_BYTES && AS_THEY_ARE.includes(file.type)) {
    return [{ url: await readAsDataUrl(file), width: bitmap.width, height: bitmap.height, name: file.name }];
  }
  const size = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  return [fromCanvas(drawn(bitmap, ...size), file.name, "image/jpeg")];
}

/** A PDF; or a PNG of 16 bits, which a browser shows by its upper bits: 12 bits of an X-ray would be black. */
async function isForTheServer(file) {
  const head = new Uint8Array(await file.slice(0, 32).arrayBuffer());
  const text = String.fromCharCode(...head.slice(0, 5));
  return text === "%PDF-" || (text === "\x89PNG\r" && head[24] === 16);
}

/** What the server makes of a URL; several pages are numbered. */
export async function fromServer(url, name, askPages) {
  const found = await pagesOf(url, name, askPages);
  return found.map(({ url, width, height }, idx) => ({
    url,
    width,
    height,
    name: found.length > 1 ? `${name} – ${idx + 1}` : name,
  }));
}

async function pagesOf(url, name, askPages) {
  let pages;
  for (;;) {
    try {
      return await serverPictures(url, pages);
    } catch (error) {
      const isAboutPages = url.startsWith("data:application/pdf") && error.status < 500 && error.status !== 401;
      pages = isAboutPages && askPages ? await askPages(name, error.message) : null;
      if (!pages) throw error;
    }
  }
}

/** A picture's name without its ending: files made of it are named after it. */
export const stem = ({ name }) => name.replace(/\.\w+$/, "");

function readAsDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

export function loadImage(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("no picture"));
    image.src = url;
  });
}

/** A canvas with `source` on white, scaled. */
export function drawn(source, width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0, width, height);
  return canvas;
}

export function fromCanvas(canvas, name, type = "image/png") {
  return { url: canvas.toDataURL(type, 0.95), width: canvas.width, height: canvas.height, name };
}

/** The part of a picture within `region` = [x1, y1, x2, y2], pixels. */
export async function cropped(picture, [x1, y1, x2, y2], name) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.max(1, x2 - x1), Math.max(1, y2 - y1)];
  canvas.getContext("2d").drawImage(await loadImage(picture.url), -x1, -y1);
  return fromCanvas(canvas, name);
}

/** The picture with a red rectangle, as DeepSeek-VL2 was trained to be shown an object. */
export async function framed(picture, [x1, y1, x2, y2], name) {
  const canvas = drawn(await loadImage(picture.url), picture.width, picture.height);
  const context = canvas.getContext("2d");
  context.strokeStyle = "#f00";
  context.lineWidth = Math.max(2, Math.round(Math.max(picture.width, picture.height) / 250));
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  return fromCanvas(canvas, name);
}
