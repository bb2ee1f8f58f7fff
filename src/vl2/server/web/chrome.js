// The frame around both pages: language, theme, the key.

import { $ } from "./dom.js";
import { hasKey, saveKey } from "./api.js";
import { language, setLanguage, t, translatePage } from "./texts.js";

const THEMES = ["auto", "light", "dark"];

/** `onLanguage()` is called after the language has changed. */
export function startChrome(onLanguage) {
  translatePage();
  showTheme();
  $("language").addEventListener("click", () => {
    setLanguage(language === "en" ? "zh" : "en");
    showTheme();
    onLanguage();
  });
  $("theme").addEventListener("click", () => {
    const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    localStorage.setItem("vl2-theme", theme);
    document.documentElement.dataset.theme = theme;
    showTheme();
  });
}

function showTheme() {
  const theme = document.documentElement.dataset.theme;
  const label = t.themes[theme];
  $("theme").setAttribute("aria-label", label);
  $("theme").title = label;
  $("theme").querySelector("use").setAttribute("href", `#i-theme-${theme}`);
}

/** Ask for the key; resolves with whether one was given. Used when the server answered 401. */
export function askKey() {
  const dialog = $("key-dialog");
  if (dialog.open) return new Promise(() => {}); // it is being asked for already
  $("key-error").textContent = hasKey() ? t.keyWrong : "";
  $("key-error").hidden = !hasKey();
  $("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      const key = $("key").value.trim();
      if (!/^[\x21-\x7e]+$/.test(key)) {
        $("key-error").textContent = t.keyWrong; // no header can carry it
        $("key-error").hidden = false;
        return;
      }
      saveKey(key);
      dialog.close("given");
    };
    $("key-close").onclick = () => dialog.close();
    dialog.onclose = () => resolve(dialog.returnValue === "given");
  });
}
