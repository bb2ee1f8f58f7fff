// The status view: one reading of /status/data every two seconds, and what it means.

import { readStatus } from "./api.js";
import { askKey, startChrome } from "./chrome.js";
import { $, el, short, svg } from "./dom.js";
import { t } from "./texts.js";

const POLL_MS = 2000;
const CHART = { width: 320, height: 64 };

let last = null; // {status, at}: the reading before, for rates
let shown = null; // what to draw again after a change of language

async function poll() {
  try {
    const status = await readStatus();
    const at = performance.now();
    shown = { status, rate: last && tokensPerSecond(last, status, at) };
    last = { status, at };
    $("problem").hidden = true;
    render();
  } catch (error) {
    $("problem").textContent = error.status ? error.message : t.lost;
    $("problem").hidden = false;
    if (error.status === 401 && !(await askKey())) return;
  }
  setTimeout(poll, POLL_MS);
}

const sum = (status, field) => status.replicas.reduce((total, r) => total + (r.stats?.[field] ?? 0), 0);

/** Null when an engine was started anew in between: its counters began at 0. */
function tokensPerSecond(before, status, at) {
  const tokens = sum(status, "generated_tokens_total") - sum(before.status, "generated_tokens_total");
  return tokens < 0 ? null : (tokens / (at - before.at)) * 1000;
}

function render() {
  const { status, rate } = shown;
  const [used, pages] = [sum(status, "num_pages_used"), sum(status, "num_pages")];
  const ready = status.replicas.filter((replica) => replica.is_ready).length;
  $("summary").replaceChildren(
    card(t.model, status.model, t.states[status.state], status.state),
    card(t.replicas, `${ready} / ${status.replicas.length}`, t.ready, ready ? "ready" : "failed"),
    card(t.running, sum(status, "num_running"), `${sum(status, "num_waiting")} ${t.waiting}`),
    meter(t.pages, used, pages),
    card(t.speed, rate === null ? "–" : rate.toFixed(rate < 10 ? 1 : 0), t.tokensPerSecond),
    card(t.uptime, duration(status.uptime_s), `${sum(status, "restarts_total")} ${t.restarts}`),
  );
  $("charts").replaceChildren(
    chart(t.firstToken, status.recent.map((answer) => answer.first_token_s)),
    chart(t.wholeAnswer, status.recent.map((answer) => answer.total_s)),
  );
  $("replica-table").replaceChildren(...replicaRows(status.replicas));
  $("versions").replaceChildren(...facts(status));
  for (const id of ["latency", "replicas", "about"]) $(id).hidden = false;
}

function card(name, value, note, state) {
  return el(
    "div",
    { class: "card" },
    el("h2", {}, name),
    el("p", { class: "value" }, String(value)),
    el("p", { class: `note ${state ?? ""}` }, note),
  );
}

function meter(name, used, total) {
  const share = total ? used / total : 0;
  const node = card(name, `${Math.round(share * 100)} %`, `${used} / ${total}`);
  const bar = el("div", { class: "meter", role: "meter", "aria-label": name, "aria-valuemin": 0, "aria-valuemax": total, "aria-valuenow": used }, el("span"));
  bar.firstChild.style.setProperty("width", `${share * 100}%`);
  node.append(bar);
  return node;
}

const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];

/** A sparkline of the last answers, oldest at the left. */
function chart(name, seconds) {
  const figure = el("figure", { class: "card" }, el("figcaption", {}, name));
  if (!seconds.length) {
    figure.append(el("p", { class: "note" }, t.noAnswers));
    return figure;
  }
  const sorted = [...seconds].sort((a, b) => a - b);
  const [median, p99, top] = [quantile(sorted, 0.5), quantile(sorted, 0.99), sorted.at(-1) || 1];
  const shown = seconds.length === 1 ? [...seconds, ...seconds] : seconds; // one answer is a line, too
  const x = (idx) => (idx / (shown.length - 1)) * CHART.width;
  const y = (value) => CHART.height - 3 - (value / top) * (CHART.height - 8);
  const line = shown.map((value, idx) => `${x(idx).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const told = `${t.median} ${short(1000 * median)} · p99 ${short(1000 * p99)} · ${t.answersOf(seconds.length)}`;
  figure.append(
    el("p", { class: "value" }, short(1000 * median)),
    svg(
      "svg",
      { viewBox: `0 0 ${CHART.width} ${CHART.height}`, role: "img", "aria-label": `${name}: ${told}`, class: "spark", preserveAspectRatio: "none" },
      svg("polygon", { points: `${x(0).toFixed(1)},${CHART.height} ${line} ${CHART.width},${CHART.height}` }),
      svg("polyline", { points: line }),
    ),
    el("p", { class: "note" }, told),
  );
  return figure;
}

const GPU_COLUMNS = () => [
  [t.gpuBusy, ({ gpu }) => known(gpu?.utilization, (share) => percent(share, 1))],
  [t.gpuMemory, ({ gpu }) => known(gpu?.memory_used_bytes, (used) => `${gib(used)} / ${gib(gpu.memory_total_bytes)} GiB`)],
  [t.gpuHeat, ({ gpu }) => known(gpu?.temperature_celsius, (degrees) => `${Math.round(degrees)} °C`)],
];
const known = (value, tell) => (value === null || value === undefined ? "–" : tell(value));
const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);

function replicaRows(replicas) {
  const columns = [
    [t.replica, (r, idx) => idx],
    [t.state, (r) => (r.is_ready ? t.ready : t.notReady)],
    [t.running, (r) => r.stats?.num_running],
    [t.Waiting, (r) => r.stats?.num_waiting],
    [t.pages, (r) => r.stats && `${r.stats.num_pages_used} / ${r.stats.num_pages}`],
    [t.promptTokens, (r) => r.stats?.prompt_tokens_total],
    [t.cachedShare, (r) => r.stats && percent(r.stats.cached_tokens_total, r.stats.prompt_tokens_total)],
    [t.answerTokens, (r) => r.stats?.generated_tokens_total],
    [t.tileHits, (r) => r.stats && percent(r.stats.tile_hits_total, r.stats.tile_hits_total + r.stats.tiles_encoded_total)],
    ...(replicas.some(({ gpu }) => gpu) ? GPU_COLUMNS() : []),
    [t.preemptions, (r) => r.stats?.preemptions_total],
    [t.Restarts, (r) => r.stats?.restarts_total],
  ];
  const head = el("thead", {}, el("tr", {}, ...columns.map(([name]) => el("th", { scope: "col" }, name))));
  const rows = replicas.map((replica, idx) =>
    el("tr", {}, ...columns.map(([, read]) => el("td", {}, number(read(replica, idx))))),
  );
  return [head, el("tbody", {}, ...rows)];
}

function facts({ info, versions }) {
  const known = info
    ? {
        [t.device]: `${info.device}, ${info.dtype}`,
        [t.numParameters]: `${(info.num_parameters / 1e6).toFixed(1)} M · ${(info.weights_bytes / 2 ** 20).toFixed(0)} MiB`,
        [t.context]: `${number(info.max_context_tokens)} ${t.tokensWord}`,
        [t.receipt]: info.fingerprint,
      }
    : {};
  return Object.entries({ ...known, ...versions }).map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value)),
  );
}

const percent = (part, whole) => (whole ? `${Math.round((part / whole) * 100)} %` : "–");
const number = (value) => (typeof value === "number" ? value.toLocaleString(document.documentElement.lang) : value ?? "–");

function duration(seconds) {
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

startChrome(() => shown && render());
poll();
