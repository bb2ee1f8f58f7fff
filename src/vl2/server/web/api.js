// The server's API, as the pages use it.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const KEY = "vl2-api-key";

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));
export const saveKey = (key) => sessionStorage.setItem(KEY, key); // gone when the tab closes

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return { ...more, ...(key && { Authorization: `Bearer ${key}` }) };
}

async function send(path, body, { signal, ...more } = {}) {
  const request = { headers: headers(more), signal };
  if (body !== undefined) {
    request.method = "POST";
    request.headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  const response = await fetch(path, request);
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new ApiError(told?.error?.message ?? `HTTP ${response.status}`, response.status);
}

/** The served model: {id, max_model_len}. Without max_model_len it is still loading. */
export const readModel = async () => (await (await send("/v1/models")).json()).data[0];

/** Exact tokens of a request and what may be expected of it; see POST /v1/estimate. */
export const estimate = async (body, signal) => (await send("/v1/estimate", body, { signal })).json();

/** A picture, or a PDF's pages, as the model sees them: [{url, width, height}]. */
export const serverPictures = async (url, pages) =>
  (await (await send("/v1/pictures", pages ? { url, pages } : { url })).json()).data;

export const readStatus = async () => (await send("/status/data")).json();

/** Stream an answer: yields the chunks of chat completions. Throws ApiError. */
export async function* streamAnswer(body, signal) {
  const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await send("/v1/chat/completions", streamed, { signal, "X-VL2-Timing": "1" });
  for await (const data of readEvents(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, 500);
    yield chunk;
  }
  throw new TypeError("the stream ended before the answer did"); // as fetch says of a lost connection
}

async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) if (event.startsWith("data: ")) yield event.slice(6);
  }
}
