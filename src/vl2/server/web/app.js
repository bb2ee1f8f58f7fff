// The page: the conversation as it is, asking, and everything that is wired together.

import { hasKey, readModel } from "./api.js";
import { askKey, startChrome } from "./chrome.js";
import { closeSchema, estimateSoon, readSchema, setSchema, showPresets } from "./compose.js";
import { $, say } from "./dom.js";
import { follow } from "./follow.js";
import { keep, show as showHistory, startHistory, toggle as toggleHistory } from "./history.js";
import { answerNode, pictureToAsk, questionNode } from "./message.js";
import { cropped, framed, stem } from "./pictures.js";
import { requestBody, sentPictures } from "./request.js";
import { openRequest, startRequest } from "./show-request.js";
import { settings, showNumber, startSettings } from "./settings.js";
import { startSources } from "./sources.js";
import { plainText } from "./tags.js";
import { t } from "./texts.js";
import { addPictures, isLoading, renderTray, setTray, startTray, takeTray, trayIsGood, trayPictures } from "./tray.js";
import { openViewer } from "./viewer.js";

const POLL_MS = 2000; // while the server is away or loading

let conversation = fresh(); // {id, turns}; a turn is {role: "user", text, pictures, schema} or {role: "assistant", text, …}
let running = null; // {controller} of the answer under way
let previewed; // the picture on the empty page
let editing = null; // the question that is being changed

function fresh() {
  return { id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, turns: [] };
}

// ---- asking ---------------------------------------------------------------------------------------------------------

async function ask() {
  const here = conversation;
  if (!(await trayIsGood())) return; // asked about a picture that is none: nothing to answer
  const text = $("question").value.trim();
  if (conversation !== here || running || (!text && !trayPictures().length)) return;
  let schema;
  try {
    schema = readSchema();
  } catch (error) {
    return notify(t.schemaWrong(error.message));
  }
  notify("");
  if (editing) conversation.turns.splice(conversation.turns.indexOf(editing));
  editing = null;
  conversation.turns.push({ role: "user", text, pictures: takeTray(), schema });
  $("question").value = "";
  closeSchema();
  renderTurns();
  await answer();
}

/** Answer the last question. */
async function answer() {
  const here = conversation;
  const { turns } = here;
  const controller = new AbortController();
  const body = requestBody(turns, settings);
  const turn = { role: "assistant", text: "", settings, isJson: Boolean(turns.at(-1).schema), isRunning: true };
  turns.push(turn);
  const view = addTurn(turn);
  running = { controller };
  say(t.answering);
  render();
  scrollToEnd();
  await follow(turn, body, controller.signal, () => keepEnd(view.update));
  if (running?.controller === controller) running = null;
  if (here === conversation) {
    render();
    if (!turn.error) say(t.answered(plainText(turn.text)));
    if (turn.status === 401 && (await askKey())) {
      showModel();
      return retry(turn);
    }
    if (turn.isLost) watchServer();
  }
  if (!turn.error) await keep({ ...here, turns: here.turns.filter((each) => !each.isRunning) });
}

function retry(turn) {
  if (running) return;
  notify("");
  conversation.turns.splice(conversation.turns.indexOf(turn));
  renderTurns();
  answer();
}

function edit(turn) {
  if (running) return;
  editing = turn;
  setTray(turn.pictures);
  setSchema(turn.schema);
  $("question").value = turn.text;
  $("question").focus();
  render();
}

function cancelEdit() {
  editing = null;
  setTray([]);
  setSchema(null);
  $("question").value = "";
  render();
}

async function askRegion(picture, kind, region) {
  const [x1, y1, x2, y2] = region;
  const place = `${x1},${y1}–${x2},${y2}`;
  const name = stem(picture);
  const made = kind === "crop" ? await cropped(picture, region, t.cropName(name, place)) : await framed(picture, region, t.frameName(name));
  addPictures([made]);
  if (kind === "frame") $("question").value ||= t.frameQuestion;
  say(t.cropAdded);
  $("question").focus();
  render();
}

// ---- showing --------------------------------------------------------------------------------------------------------

const on = {
  edit,
  retry,
  request: (turn) => {
    const before = conversation.turns.slice(0, conversation.turns.indexOf(turn));
    openRequest(requestBody(before, turn.settings), sentPictures(before), hasKey());
  },
  view: (picture, objects) => openViewer(picture, { objects, onAsk: (kind, region) => askRegion(picture, kind, region) }),
  ask: askRegion,
};

function addTurn(turn) {
  const idx = conversation.turns.indexOf(turn);
  if (turn.role === "user") return $("turns").append(questionNode(turn, on));
  const before = conversation.turns.slice(0, idx);
  const picture = sentPictures(before).at(-1); // boxes are about the last one
  const view = answerNode(turn, picture, before.at(-1).text, on);
  $("turns").append(view.node);
  return view;
}

function renderTurns() {
  $("turns").replaceChildren();
  for (const turn of conversation.turns) addTurn(turn);
  render();
  scrollToEnd();
}

function render() {
  const isEmpty = !conversation.turns.length;
  $("welcome").hidden = !isEmpty;
  $("restart").hidden = isEmpty;
  showPreview(isEmpty ? trayPictures().at(-1) : undefined);
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  $("editing").hidden = !editing;
  $("question").style.height = "auto";
  $("question").style.height = `${$("question").scrollHeight}px`;
  $("send").disabled = isLoading() || (!trayPictures().length && !$("question").value.trim());
  estimateSoon(draftBody);
}

/** The picture that the first question is about, large. */
function showPreview(picture) {
  $("welcome-heading").hidden = $("how").hidden = $("pick").hidden = $("sample").hidden = Boolean(picture);
  $("welcome").classList.toggle("asking", Boolean(picture));
  $("preview").hidden = $("preview-how").hidden = !picture;
  if (previewed === picture) return;
  previewed = picture;
  if (!picture) return $("preview").replaceChildren();
  $("preview").replaceChildren(pictureToAsk(picture, on).node);
}

/** What would be sent now, or null. */
function draftBody() {
  const text = $("question").value.trim();
  if (running || (!text && !trayPictures().length)) return null;
  const turns = editing ? conversation.turns.slice(0, conversation.turns.indexOf(editing)) : conversation.turns;
  return requestBody([...turns, { role: "user", text, pictures: trayPictures() }], settings);
}

/** To everyone, above the question; "" takes it away. */
function notify(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

const scrollToEnd = () => $("scroll").scrollTo({ top: $("scroll").scrollHeight });

/** Do `change`; who was at the end of the conversation before it is there afterwards. */
function keepEnd(change) {
  const { scrollHeight, scrollTop, clientHeight } = $("scroll");
  change();
  if (scrollHeight - scrollTop - clientHeight < 120) scrollToEnd();
}

function open(other) {
  running?.controller.abort();
  [conversation, running, editing] = [other, null, null];
  notify("");
  closeSchema();
  $("question").value = "";
  setTray([]);
  renderTurns();
  if (matchMedia("(max-width: 64rem)").matches) toggleHistory(false);
  else if (!$("history").hidden) showHistory();
  $("question").focus();
}

// ---- the server -----------------------------------------------------------------------------------------------------

let isWatching = false;

/** Until it answers again, then say so. */
async function watchServer() {
  if (isWatching) return;
  isWatching = true;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    const response = await fetch("/health/ready").catch(() => null);
    if (response?.ok) break;
  }
  isWatching = false;
  say(t.back);
  for (const node of document.querySelectorAll(".lost")) node.textContent = t.back;
  showModel();
}

async function showModel() {
  try {
    const model = await readModel();
    $("model").textContent = model.max_model_len ? model.id : `${model.id} · ${t.loading}`;
    for (const note of document.querySelectorAll(".of-nano")) note.hidden = model.id !== "nano";
    if (!model.max_model_len) setTimeout(showModel, POLL_MS / 2);
  } catch (error) {
    if (error.status === 401 && (await askKey())) showModel();
    if (!error.status) setTimeout(showModel, POLL_MS);
  }
}

// ---- wiring ---------------------------------------------------------------------------------------------------------

function listen() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // Enter also ends Chinese input
    event.preventDefault();
    ask();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) running.controller.abort();
    const isTyping = event.target.matches?.("input, textarea, select");
    if (event.key !== "/" || isTyping || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    $("question").focus();
  });
  $("question").addEventListener("input", render);
  $("stop").addEventListener("click", () => running?.controller.abort());
  $("restart").addEventListener("click", () => open(fresh()));
  $("edit-cancel").addEventListener("click", cancelEdit);
  $("schema-remove").addEventListener("click", () => {
    closeSchema();
    $("question").focus();
  });
}

function showWords() {
  showPresets(() => trayPictures().length, notify, render);
  showNumber();
  renderTurns();
  renderTray();
  if (!$("history").hidden) showHistory();
}

startChrome(() => !running && showWords());
const ofTray = { change: render, notify, view: (picture) => on.view(picture, []), unauthorized: askKey };
startTray(ofTray);
startSources(ofTray);
startSettings(render);
startRequest();
startHistory({
  open,
  current: () => conversation.id,
  gone: (id) => (id === null || id === conversation.id) && open(fresh()),
});
listen();
showWords();
showModel();
