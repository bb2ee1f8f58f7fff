// The server's API, as this page uses it.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const KEY = "vl2-api-key";

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));
export const saveKey = (key) => sessionStorage.setItem(KEY, key); // gone when the tab closes

function headers() {
  const key = sessionStorage.getItem(KEY);
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

/** The served model: {id, max_model_len}. Without max_model_len it is still loading. */
export async function readModel() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) throw await toError(response);
  return (await response.json()).data[0];
}

/** Stream an answer: yields the chunks of chat completions. Throws ApiError. */
export async function* streamAnswer(messages, signal) {
  const body = { model: "default", messages, stream: true, stream_options: { include_usage: true } };
  const request = { method: "POST", headers: headers(), body: JSON.stringify(body), signal };
  const response = await fetch("/v1/chat/completions", request);
  if (!response.ok) throw await toError(response);
  for await (const data of readEvents(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, 500);
    yield chunk;
  }
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

async function toError(response) {
  const body = await response.json().catch(() => null);
  return new ApiError(body?.error?.message ?? `HTTP ${response.status}`, response.status);
}
