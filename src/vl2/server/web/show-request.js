// "Show the request": what was just asked, as curl, Python and JSON.

import { $, el } from "./dom.js";
import { copy } from "./message.js";
import { asCode } from "./request.js";
import { t } from "./texts.js";

const MOST = 120; // characters of a string in the JSON view: pictures are long

export function startRequest() {
  $("request-close").addEventListener("click", () => $("request-dialog").close());
  $("request-copy").addEventListener("click", () => copy($("request-code").textContent, $("request-copy")));
  $("request-tabs").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const tabs = [...$("request-tabs").children];
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
}

export function openRequest(body, pictures, needsKey) {
  const code = asCode(body, pictures, location.origin, needsKey);
  code.JSON = JSON.stringify(body, (_, value) => (typeof value === "string" && value.length > MOST ? `${value.slice(0, MOST)}…` : value), 2);
  const tabs = Object.entries(code).map(([name, text]) => {
    const tab = el("button", { type: "button", role: "tab", class: "small", "aria-controls": "request-code" }, name);
    tab.addEventListener("click", () => choose(tab, text));
    return tab;
  });
  function choose(chosen, text) {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
    }
    $("request-code").textContent = text;
    $("request-code").setAttribute("aria-label", chosen.textContent);
  }
  $("request-tabs").replaceChildren(...tabs);
  choose(tabs[0], code.curl);
  $("request-note").textContent = [pictures.length && t.requestNote, needsKey && t.withKey].filter(Boolean).join(" ");
  $("request-dialog").showModal();
}
