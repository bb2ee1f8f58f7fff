// Which language the page speaks: the one chosen here, else the browser's.

import en from "./texts-en.js";
import zh from "./texts-zh.js";

const TEXTS = { en, zh };
const CHOICE = "vl2-language";

export let language = localStorage.getItem(CHOICE) ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
export let t = TEXTS[language] ?? en;

export function setLanguage(name) {
  localStorage.setItem(CHOICE, name);
  [language, t] = [name, TEXTS[name]];
  translatePage();
}

/** Fill in the texts that a page's HTML asks for by name. */
export function translatePage() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = t[document.documentElement.dataset.title];
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = t[node.dataset.text];
  for (const node of document.querySelectorAll("[data-hint]")) node.placeholder = t[node.dataset.hint];
  for (const node of document.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", t[node.dataset.label]);
    if (node.tagName === "BUTTON" || node.tagName === "A") node.title = t[node.dataset.label];
  }
}
