// Where pictures come from: files, the clipboard, a camera, a URL.

import { $, focusQuestion } from "./dom.js";
import { drawn, fromCanvas, fromServer, loadPictures } from "./pictures.js";
import { t } from "./texts.js";
import { addLoaded, addPictures, dropInTray, trayPictures } from "./tray.js";

let on = {}; // as of the tray

export function startSources(callbacks) {
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
    if (dropInTray(event)) return;
    const files = [...event.dataTransfer.files];
    const [url] = event.dataTransfer.getData("text/uri-list").split(/\r?\n/); // a picture of another page
    if (files.length) addFiles(files);
    else if (/^https?:/.test(url)) addLoaded([[nameIn(url), () => fromServer(url, nameIn(url))]]);
  });
  startCamera();
  startUrl();
}

function addFiles(files) {
  const name = (file, idx) => file.name || t.picture(trayPictures().length + idx + 1);
  if (files.length) addLoaded(files.map((file, idx) => [name(file, idx), () => loadPictures(file, askPages)]));
}

/** Which pages of a PDF that has too many, as 1-3,5; null: none. */
function askPages(name, why) {
  $("pages-heading").textContent = name;
  $("pages-why").textContent = why;
  $("pages").value = "1-";
  $("pages-dialog").returnValue = "";
  $("pages-dialog").showModal();
  $("pages-close").onclick = () => $("pages-dialog").close();
  return new Promise((resolve) => {
    $("pages-dialog").onclose = () => resolve($("pages-dialog").returnValue === "take" ? $("pages").value.trim() : null);
  });
}

const nameIn = (url) => url.split(/[?#]/)[0].split("/").at(-1) || url;

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
      const found = await fromServer(url, nameIn(url));
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
    addPictures([fromCanvas(drawn($("video"), videoWidth, videoHeight), `${t.camera} ${trayPictures().length + 1}.jpg`, "image/jpeg")]);
    $("camera-dialog").close();
    focusQuestion();
  });
  $("camera-close").addEventListener("click", () => $("camera-dialog").close());
  $("camera-dialog").addEventListener("close", end);
}
