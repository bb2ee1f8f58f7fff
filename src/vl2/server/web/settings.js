// How to answer: what differs from the server's defaults, kept in this browser.

import { $, el } from "./dom.js";
import { t } from "./texts.js";

const KEPT = "vl2-parameters";
const FIELDS = {
  temperature: { type: "number", min: 0, max: 2, step: 0.1, usual: 0 },
  max_tokens: { type: "number", min: 1, step: 1 },
  top_p: { type: "number", min: 0.01, max: 1, step: 0.01, usual: 1 },
  top_k: { type: "number", min: 0, step: 1, usual: 0 },
  repetition_penalty: { type: "number", min: 0.1, max: 10, step: 0.05, usual: 1 },
  seed: { type: "number", step: 1 },
  stop: { type: "text" },
  system: { type: "textarea" },
  detail: { type: "checkbox" },
  grounding: { type: "checkbox" },
};

/** Name → value of what was changed. */
export let settings = read();

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT)) ?? {};
    return Object.fromEntries(Object.entries(kept).filter(([name]) => name in FIELDS));
  } catch {
    return {};
  }
}

function keep(changed) {
  settings = changed;
  localStorage.setItem(KEPT, JSON.stringify(changed));
  showNumber();
}

/** How many parameters are not as usual, on the button. */
export function showNumber() {
  const number = Object.keys(settings).length;
  const label = number ? t.changed(number) : t.settings;
  $("settings").setAttribute("aria-label", label);
  $("settings").title = label;
  $("settings").classList.toggle("lit", number > 0);
}

/** `onChange()` is called when the dialog closes. */
export function startSettings(onChange) {
  $("settings").addEventListener("click", () => {
    $("parameters").replaceChildren(...Object.keys(FIELDS).map(field));
    $("settings-dialog").showModal();
  });
  $("settings-reset").addEventListener("click", () => {
    keep({});
    $("parameters").replaceChildren(...Object.keys(FIELDS).map(field));
  });
  $("settings-dialog").addEventListener("close", onChange);
  showNumber();
}

function field(name) {
  const { type, usual, ...limits } = FIELDS[name];
  const [label, meaning] = t.parameters[name];
  const id = `parameter-${name}`;
  const isCheck = type === "checkbox";
  const input = el(type === "textarea" ? "textarea" : "input", {
    id,
    ...(type === "textarea" ? { rows: 2 } : { type }),
    ...limits,
    "aria-describedby": `${id}-meaning`,
    value: isCheck ? undefined : String(settings[name] ?? usual ?? ""),
    checked: isCheck && settings[name],
    oninput: () => change(name, input),
  });
  return el(
    "div",
    { class: `parameter ${type}` },
    el("label", { for: id }, label),
    input,
    el("p", { id: `${id}-meaning`, class: "note" }, meaning),
  );
}

function change(name, input) {
  const { type, usual } = FIELDS[name];
  const { [name]: _, ...others } = settings;
  if (!input.checkValidity()) return; // the field itself shows what is wrong
  const value = type === "checkbox" ? input.checked : type === "number" ? (input.value === "" ? undefined : Number(input.value)) : input.value;
  const isUsual = value === undefined || value === "" || value === false || value === usual;
  keep(isUsual ? others : { ...others, [name]: value });
}
