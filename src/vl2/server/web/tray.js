// The pictures of the next question, in order: added from files, the clipboard, a camera, a URL or a region.

import { $, el, focusQuestion, iconButton } from "./dom.js";
import { drawn, fromCanvas, fromServer, loadPictures } from "./pictures.js";
import { t } from "./texts.js";

let pictures = [];
let loading = null; // while pictures are being read: a promise of whether all of them could be
let on = {}; // {change(), notify(text), view(picture), unauthorized() → whether there is a key now}

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

export function addFiles(files) {
  if (files.length) add(files.map((file) => [file.name || t.picture(pictures.length + 1), () => loadPictures(file)]));
}

/** `work`: [[name, load → promise of pictures]]; they keep the order in which they were given. */
function add(work) {
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
      bad.push(error.status && error.status !== 400 ? t.notReadBy(name, error.message) : t.notPicture(name));
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
function dropInTray(event) {
  const from = event.dataTransfer.getData("text/x-vl2-picture");
  const item = event.target.closest?.("#tray li");
  if (from === "" || !item) return false;
  pictures.splice(Number(item.dataset.idx), 0, ...pictures.splice(Number(from), 1));
  renderTray();
  return true;
}

// ---- where pictures come from ---------------------------------------------------------------------------------------

export function startTray(callbacks) {
  on = callbacks;
  for (const id of ["add", "pick"]) $(id).addEventListener("click", () => $("files").click());
  for (const id of ["files", "shot"]) {
    $(id).addEventListener("change", () => {
      addFiles([...$(id).files]);
      $(id).value = "";
    });
  }
  // Scene 202239 of nano/scenes.py. Telescope: EmojiOne (CC BY 4.0); snail: Noto Emoji (Apache-2.0).
  $("sample").addEventListener("click", async () => {
    const blob = await (await fetch("/web/sample.webp")).blob();
    addFiles([new File([blob], "sample.webp", { type: "image/webp" })]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) event.preventDefault();
    addFiles(files);
  });
  const isFiles = (event) => event.dataTransfer.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", isFiles(event));
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (!dropInTray(event)) addFiles([...event.dataTransfer.files]);
  });
  startCamera();
  startUrl();
}

function startUrl() {
  $("from-url").addEventListener("click", () => {
    $("url").value = "";
    $("url-error").hidden = true;
    $("url-dialog").showModal();
  });
  $("url-close").addEventListener("click", () => $("url-dialog").close());
  $("url-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const url = $("url").value.trim();
    if (!url) return;
    $("url-add").disabled = true;
    try {
      const name = url.split(/[?#]/)[0].split("/").at(-1) || url;
      const found = await fromServer(url, name);
      $("url-dialog").close();
      addPictures(found);
      focusQuestion();
    } catch (error) {
      $("url-error").textContent = error.status ? error.message : t.lost;
      $("url-error").hidden = false;
      if (error.status === 401) {
        $("url-dialog").close();
        await on.unauthorized();
      }
    } finally {
      $("url-add").disabled = false;
    }
  });
}

/** A live view where the browser lets a page have one; else the phone's own camera, or a file. */
function startCamera() {
  let stream = null;
  const end = () => {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
  };
  $("camera").addEventListener("click", async () => {
    if (!navigator.mediaDevices || matchMedia("(pointer: coarse)").matches) return $("shot").click();
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 }, facingMode: "environment" } });
    } catch {
      return on.notify(t.noCamera);
    }
    $("video").srcObject = stream;
    $("camera-dialog").showModal();
    await $("video").play();
  });
  $("snap").addEventListener("click", () => {
    const { videoWidth, videoHeight } = $("video");
    addPictures([fromCanvas(drawn($("video"), videoWidth, videoHeight), `${t.camera} ${pictures.length + 1}.jpg`, "image/jpeg")]);
    $("camera-dialog").close();
    focusQuestion();
  });
  $("camera-close").addEventListener("click", () => $("camera-dialog").close());
  $("camera-dialog").addEventListener("close", end);
}
