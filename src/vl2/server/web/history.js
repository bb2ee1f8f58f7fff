// Earlier conversations, in this browser's own database: {id, title, at, turns}. Nothing of it leaves the browser.

import { $, el, iconButton } from "./dom.js";
import { plainText } from "./tags.js";
import { language, t } from "./texts.js";

const MOST = 100; // the oldest go first

const opened = new Promise((resolve, reject) => {
  const request = indexedDB.open("vl2", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" }).createIndex("at", "at");
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});
opened.catch(() => {}); // a browser that keeps nothing: everything else works

async function run(mode, work) {
  const transaction = (await opened).transaction("conversations", mode);
  const result = work(transaction.objectStore("conversations"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(result?.result);
    transaction.onabort = () => reject(transaction.error); // by an error of a request, or a full disk
  });
}

export async function keep(conversation) {
  const asked = conversation.turns.find((turn) => turn.role === "user");
  if (!asked) return;
  const title = plainText(asked.text).slice(0, 80) || asked.pictures[0]?.name;
  try {
    await run("readwrite", (store) => store.put({ ...conversation, title, at: Date.now() }));
    const all = await run("readonly", (store) => store.index("at").getAllKeys());
    if (all.length > MOST) await run("readwrite", (store) => all.slice(0, all.length - MOST).forEach((id) => store.delete(id)));
  } catch {
    return; // a full disk or a private window
  }
  if (!$("history").hidden) await show();
}

let callbacks = {};

/** `on`: {open(conversation), current() → id of the one on the page, gone(id | null: all)}. */
export function startHistory(on) {
  callbacks = on;
  $("history-open").addEventListener("click", () => toggle($("history").hidden));
  $("history-close").addEventListener("click", () => {
    toggle(false);
    $("history-open").focus();
  });
  $("history").addEventListener("keydown", (event) => event.key === "Escape" && $("history-close").click());
  $("history-clear").addEventListener("click", async () => {
    if ($("history-clear").textContent !== t.historyClearSure) return ($("history-clear").textContent = t.historyClearSure);
    await run("readwrite", (store) => store.clear());
    callbacks.gone(null);
    await show();
  });
}

export function toggle(isOpen) {
  $("history").hidden = !isOpen;
  $("history-open").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) show().then(() => $("history").querySelector("button").focus());
}

export async function show() {
  const all = await run("readonly", (store) => store.index("at").getAll()).catch(() => []);
  const date = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" });
  const entries = all.reverse().map((conversation) => {
    const title = conversation.title || t.untitled;
    const open = el(
      "button",
      {
        type: "button",
        class: "plain entry",
        "aria-current": conversation.id === callbacks.current() ? "true" : null,
        onclick: () => callbacks.open(conversation),
      },
      el("span", {}, title),
      el("span", { class: "note" }, date.format(conversation.at)),
    );
    const remove = iconButton("close", t.historyDelete(title), async () => {
      await run("readwrite", (store) => store.delete(conversation.id));
      callbacks.gone(conversation.id);
      await show();
      $("history").querySelector("button").focus();
    });
    return el("li", {}, open, remove);
  });
  $("history-list").replaceChildren(...entries);
  $("history-note").textContent = entries.length ? t.historyNote : t.historyNone;
  $("history-clear").hidden = !entries.length;
  $("history-clear").textContent = t.historyClear;
}
