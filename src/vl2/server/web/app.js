// The page: pictures and a question go up, an answer streams down, boxes are drawn on the picture.

import { renderAnswer } from "./answer.js";
import { hasKey, readModel, saveKey, streamAnswer } from "./api.js";
import { loadPicture, pictureFigure } from "./pictures.js";
import { t, translatePage } from "./texts.js";

const $ = (id) => document.getElementById(id);

let turns = []; // the conversation as it is sent: {role, content}
let tray = []; // pictures of the next question
let loading = null; // while pictures are being read: a promise of whether all of them could be
let lastFigure = null; // boxes are about the conversation's last picture
let running = null; // AbortController of the answer under way

// ---- pictures -------------------------------------------------------------------------------------------------------

function addFiles(files) {
  if (!files.length) return;
  notify("");
  const reading = (loading = readFiles(files, tray, loading));
  reading.then(() => {
    if (loading !== reading) return; // more files came, or a new conversation
    loading = null;
    renderTray();
    $("question").focus();
  });
  render();
}

/** Into `into`, which is no longer the tray after a new conversation; files keep the order in which they were given. */
async function readFiles(files, into, before) {
  let isGood = (await before) ?? true;
  const bad = [];
  for (const file of files) {
    try {
      into.push(await loadPicture(file));
    } catch {
      isGood = false;
      bad.push(t.notPicture(file.name));
    }
  }
  if (bad.length && into === tray) notify(bad.join("\n"));
  return isGood;
}

function renderTray() {
  const items = tray.map((picture, idx) => {
    const item = document.createElement("li");
    const image = document.createElement("img");
    image.src = picture.url;
    image.alt = picture.name || `${t.picture} ${idx + 1}`;
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.title = t.remove;
    remove.setAttribute("aria-label", `${t.remove}: ${image.alt}`);
    remove.addEventListener("click", () => {
      tray.splice(idx, 1);
      renderTray();
      $("question").focus();
    });
    item.append(image, remove);
    return item;
  });
  $("tray").replaceChildren(...items);
  $("tray").hidden = !tray.length;
  render();
}

// ---- the conversation -----------------------------------------------------------------------------------------------

async function ask() {
  const here = turns;
  while (loading) if (!(await loading)) return; // asked about a picture that is none: nothing to answer
  const question = $("question").value.trim();
  if (turns !== here || running || (!question && !tray.length)) return;
  notify("");
  const controller = (running = new AbortController());
  const pictures = tray.splice(0);
  const asked = { question, pictures, figureBefore: lastFigure, turns }; // `turns` is another list after a restart
  const parts = pictures.map((picture) => ({ type: "image_url", image_url: { url: picture.url } }));
  turns.push({ role: "user", content: [...parts, { type: "text", text: question }] });
  asked.article = showQuestion(question, pictures);
  $("question").value = "";
  renderTray();
  const article = addArticle("answer");
  try {
    await showAnswer(article, asked.turns, controller.signal);
  } catch (error) {
    if (asked.turns === turns) takeBack(asked, article, error);
  }
  article.classList.remove("running");
  if (running === controller) running = null;
  render();
}

function showQuestion(question, pictures) {
  const article = addArticle("question");
  const figures = pictures.map((picture, idx) => pictureFigure(picture, `${t.picture} ${idx + 1}`));
  lastFigure = figures.at(-1) ?? lastFigure;
  const text = document.createElement("p");
  text.textContent = question;
  article.append(...figures, ...(question ? [text] : []));
  return article;
}

async function showAnswer(article, turns, signal) {
  const started = performance.now();
  const figure = lastFigure;
  const text = document.createElement("p");
  article.append(text);
  article.classList.add("running");
  say(t.answering);
  let [content, first, reason, grounding, usage] = ["", null, null, null, null];
  try {
    for await (const chunk of streamAnswer(turns, signal)) {
      usage = chunk.usage ?? usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      if (choice.delta.content) first ??= performance.now();
      content += choice.delta.content ?? "";
      grounding = choice.delta.grounding ?? grounding;
      reason = choice.finish_reason ?? reason;
      const wasAtEnd = isAtEnd();
      renderAnswer(text, content, false);
      if (wasAtEnd) scrollToEnd();
    }
  } catch (error) {
    if (error.name !== "AbortError" || !content) throw error;
    reason = "stopped";
  }
  const onPoint = figure && grounding ? (idx) => figure.boxes(grounding, idx) : null;
  renderAnswer(text, content, true, onPoint);
  if (onPoint) figure.boxes(grounding);
  turns.push({ role: "assistant", content });
  const seconds = (end) => ((end - started) / 1000).toFixed(2);
  const notes = { stopped: t.stopped, length: t.cut };
  addNote(article, [
    notes[reason],
    usage && t.tokens(usage),
    first && t.seconds(seconds(first), seconds(performance.now())),
  ]);
  say(`${t.answered} ${text.textContent}`);
}

/** Unanswered: the question goes back where it came from, so that it can be changed and asked again. */
function takeBack({ question, pictures, figureBefore, article: questionArticle }, article, error) {
  questionArticle.remove();
  turns.pop();
  lastFigure = figureBefore;
  tray.unshift(...pictures);
  $("question").value ||= question;
  if (error.name === "AbortError") {
    article.remove();
  } else {
    const text = document.createElement("p");
    text.className = "error";
    text.setAttribute("role", "alert");
    text.textContent = error.status ? error.message : t.lost;
    article.replaceChildren(text);
  }
  if (error.status === 401) showKeyForm();
  renderTray();
}

function addArticle(kind) {
  const article = document.createElement("article");
  article.className = kind;
  article.setAttribute("aria-label", kind === "question" ? t.you : "vl2");
  $("turns").append(article);
  scrollToEnd();
  return article;
}

function addNote(article, parts) {
  const note = document.createElement("p");
  note.className = "note";
  note.textContent = parts.filter(Boolean).join(" · ");
  article.append(note);
  scrollToEnd();
}

function restart() {
  running?.abort();
  [turns, tray, loading, lastFigure, running] = [[], [], null, null, null];
  notify("");
  $("turns").replaceChildren();
  renderTray();
  $("question").focus();
}

// ---- the rest of the page -------------------------------------------------------------------------------------------

function render() {
  const isEmpty = !$("turns").childElementCount;
  $("welcome").hidden = !isEmpty;
  $("restart").hidden = isEmpty;
  $("pick").hidden = tray.length > 0;
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  $("question").style.height = "auto";
  $("question").style.height = `${$("question").scrollHeight}px`;
  $("send").disabled = Boolean(loading) || (!tray.length && !$("question").value.trim());
}

const say = (text) => ($("status").textContent = text); // to those who do not see the page

/** To everyone, above the question; "" takes it away. */
function notify(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

const isAtEnd = () => $("drop").scrollHeight - $("drop").scrollTop - $("drop").clientHeight < 80;
const scrollToEnd = () => $("drop").scrollTo({ top: $("drop").scrollHeight });

function showKeyForm() {
  $("key-form").hidden = false;
  $("key").focus();
}

async function showModel() {
  try {
    const model = await readModel();
    if (!$("key-form").hidden) notify("");
    $("key-form").hidden = true;
    $("model").textContent = model.max_model_len ? model.id : `${model.id} · ${t.loading}`;
    if (!model.max_model_len) setTimeout(showModel, 1000);
  } catch (error) {
    if (error.status === 401) showKeyForm();
    if (error.status === 401 && hasKey()) notify(t.keyWrong);
    if (!error.status) setTimeout(showModel, 3000);
  }
}

function showChips() {
  const chips = t.chips.map((text) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = text;
    chip.addEventListener("click", () => {
      const typed = $("question").value.trim();
      const isOwn = typed && !t.chips.includes(typed); // what someone wrote is never lost
      $("question").value = isOwn ? `${typed}\n${text}` : text;
      $("question").focus();
      render();
    });
    return chip;
  });
  $("chips").replaceChildren(...chips);
}

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
  $("question").addEventListener("input", render);
  $("stop").addEventListener("click", () => running?.abort());
  $("restart").addEventListener("click", restart);
  for (const id of ["add", "pick"]) $(id).addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => {
    addFiles([...$("files").files]);
    $("files").value = "";
  });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = $("key").value.trim();
    if (!/^[\x21-\x7e]+$/.test(key)) return notify(t.keyWrong); // no header can carry it
    saveKey(key);
    showModel();
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) event.preventDefault();
    addFiles(files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    addFiles([...event.dataTransfer.files]);
  });
}

translatePage();
showChips();
listen();
render();
showModel();
