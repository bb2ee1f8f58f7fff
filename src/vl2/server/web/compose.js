// The question being written: tasks to start from, a schema for JSON, and what it will cost.

import { estimate } from "./api.js";
import { $, el, icon, short } from "./dom.js";
import { withUrls } from "./request.js";
import { t } from "./texts.js";

const PAUSE_MS = 350; // of typing, before the server is asked
const DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="; // stands for a counted picture
const SCHEMA = {
  type: "object",
  properties: {
    summary: { type: "string", maxLength: 120 }, // a model that does not know JSON would find no end
    objects: { type: "array", items: { type: "string", maxLength: 24 }, maxItems: 8 },
  },
  required: ["summary", "objects"],
  additionalProperties: false,
};

// ---- tasks ----------------------------------------------------------------------------------------------------------

/** `number()`: of pictures that the question has. */
export function showPresets(number, notify, onChange) {
  const texts = () => Object.values(t.presets).map(([, text]) => text);
  const choose = (name, [, text, blank]) => {
    notify(name === "compare" && number() < 2 ? t.needsTwo : "");
    const typed = $("question").value.trim();
    const isOwn = typed && !texts().includes(typed); // what someone wrote is never lost
    $("question").value = isOwn ? `${typed}\n${text}` : text;
    if (name === "json") openSchema();
    else if (!isOwn) closeSchema();
    $("question").focus();
    const at = $("question").value.lastIndexOf(blank ?? "");
    if (blank) $("question").setSelectionRange(at, at + blank.length);
    onChange();
  };
  const buttons = Object.entries(t.presets).map(([name, preset]) =>
    el("button", { type: "button", onclick: () => choose(name, preset) }, icon(name), preset[0]),
  );
  $("presets").replaceChildren(...buttons);
}

function openSchema() {
  if ($("schema-box").hidden) $("schema").value ||= JSON.stringify(SCHEMA, null, 2);
  $("schema-box").hidden = false;
}

export function closeSchema() {
  $("schema-box").hidden = true;
}

export function setSchema(schema) {
  $("schema").value = schema ? JSON.stringify(schema, null, 2) : "";
  $("schema-box").hidden = !schema;
}

/** The schema that is asked for, or null. Raises: SyntaxError. */
export const readSchema = () => ($("schema-box").hidden ? null : JSON.parse($("schema").value));

// ---- what it will cost ----------------------------------------------------------------------------------------------

let counted = { key: null, tokens: 0 }; // of the pictures, which are sent once and not with each letter
let timer = null;
let asking = null; // AbortController

/** Ask for an estimate of `body()` after a pause; it is null where there is nothing to ask. */
export function estimateSoon(body) {
  clearTimeout(timer);
  asking?.abort();
  timer = setTimeout(() => showEstimate(body()), PAUSE_MS);
}

async function showEstimate(body) {
  if (!body) return tell("");
  asking = new AbortController();
  try {
    const urls = [];
    const light = withUrls(body, (url) => {
      urls.push(url);
      return DOT;
    });
    const key = urls.map((url) => `${url.length}${url.slice(-400)}`).join();
    const isKnown = urls.length === 0 || key === counted.key;
    const told = await estimate(isKnown ? light : body, asking.signal);
    if (!isKnown) counted = { key, tokens: told.image_tokens };
    const ofPictures = urls.length ? counted.tokens : 0;
    const tokens = told.text_tokens + ofPictures;
    const seconds = told.expected_first_token_s && (told.expected_first_token_s * tokens) / told.count;
    if (tokens >= told.max_model_len) return tell(t.tooLong(tokens, told.max_model_len), true);
    tell([t.estimate(tokens, ofPictures), seconds && t.soon(short(seconds * 1000))].filter(Boolean).join(" · "));
  } catch (error) {
    if (error.name !== "AbortError") tell(error.status === 400 || error.status === 413 ? error.message : "", true);
  }
}

function tell(text, isBad = false) {
  $("estimate").textContent = text;
  $("estimate").title = text;
  $("estimate").classList.toggle("bad", isBad);
}
