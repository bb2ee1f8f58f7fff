// The pictures of the next question, in order.

import { $, el, focusQuestion, iconButton } from "./dom.js";
import { t } from "./texts.js";

let pictures = [];
let loading = null; // while pictures are being read: a promise of whether all of them could be
let on = {};

/** `callbacks`: {change(), notify(text), view(picture), unauthorized() → whether there is a key now}. */
export function startTray(callbacks) {
  on = callbacks;
}

export const trayPictures = () => pictures;
export const isLoading = () => loading !== null;

/** Waits for pictures that are still being read; false when one of them could not be. */
export async function trayIsGood() {
  while (loading) if (!(await loading)) return false;
  return true;
}

export function setTray(list) {
  [pictures, loading] = [[...list], null];
  renderTray();
}

/** Take all pictures out. */
export function takeTray() {
  const taken = pictures;
  setTray([]);
  return taken;
}

export function addPictures(list) {
  pictures.push(...list);
  renderTray();
}

/** `work`: [[name, load → promise of pictures]]; they keep the order in which they were given. */
export function addLoaded(work) {
  on.notify("");
  const reading = (loading = read(work, pictures, loading));
  reading.then(() => {
    if (loading !== reading) return; // more came, or a new conversation
    loading = null;
    renderTray();
    focusQuestion();
  });
  renderTray();
}

/** Into `into`, which is no longer the tray after a new conversation. */
async function read(work, into, before) {
  let isGood = (await before) ?? true;
  const bad = [];
  for (const [name, load] of work) {
    try {
      const found = await load().catch(async (error) => {
        if (error.status === 401 && (await on.unauthorized())) return load();
        throw error;
      });
      into.push(...found);
    } catch (error) {
      isGood = false;
      bad.push(error.status ? t.notReadBy(name, error.message) : t.notPicture(name));
    }
  }
  if (bad.length && into === pictures) on.notify(bad.join("\n"));
  return isGood;
}

export function renderTray() {
  const waiting = loading && el("li", { class: "reading", role: "img", "aria-label": t.reading });
  $("tray").replaceChildren(...pictures.map(trayItem), ...(waiting ? [waiting] : []));
  $("tray").hidden = !pictures.length && !waiting;
  on.change();
}

function trayItem(picture, idx) {
  const name = picture.name || t.picture(idx + 1);
  const image = el("img", { src: picture.url, alt: name });
  const look = el("button", { type: "button", class: "look", "aria-label": t.enlarge(name), onclick: () => on.view(picture) }, image);
  const move = (to) => () => {
    pictures.splice(to, 0, ...pictures.splice(idx, 1));
    renderTray();
    $("tray").children[to].querySelector(".look").focus();
  };
  const remove = () => {
    pictures.splice(idx, 1);
    renderTray();
    focusQuestion();
  };
  const item = el(
    "li",
    { draggable: pictures.length > 1 && "true", "data-idx": idx },
    look,
    pictures.length > 1 && el("span", { class: "place", "aria-hidden": true }, String(idx + 1)),
    el(
      "span",
      { class: "tray-buttons" },
      idx > 0 && iconButton("left", t.earlier(name), move(idx - 1)),
      idx < pictures.length - 1 && iconButton("right", t.later(name), move(idx + 1)),
      iconButton("close", t.remove(name), remove),
    ),
  );
  item.addEventListener("dragstart", (event) => event.dataTransfer.setData("text/x-vl2-picture", String(idx)));
  return item;
}

/** A picture was let go over another: it goes to that place. Returns whether that is what it was. */
export function dropInTray(event) {
  const from = event.dataTransfer.getData("text/x-vl2-picture");
  const item = event.target.closest?.("#tray li");
  if (from === "" || !item) return false;
  pictures.splice(Number(item.dataset.idx), 0, ...pictures.splice(Number(from), 1));
  renderTray();
  return true;
}
