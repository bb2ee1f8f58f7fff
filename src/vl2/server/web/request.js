// A conversation → the body of a request, and the same request as curl and Python for people to run.

/** `turns` end with a question. */
export function requestBody(turns, settings) {
  const { system, detail, stop, ...sampling } = settings;
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of sent(turns)) {
    const isQuestion = turn.role === "user";
    messages.push({ role: turn.role, content: isQuestion ? content(turn, detail) : turn.text });
  }
  const { schema } = turns.at(-1);
  return {
    model: "default",
    messages,
    ...sampling,
    ...(stop && { stop: [stop] }),
    ...(schema && { response_format: { type: "json_schema", json_schema: { name: "answer", schema } } }),
  };
}

/** The pictures that the model is shown; boxes are about the last of them. */
export const sentPictures = (turns) => sent(turns).flatMap(({ pictures }) => pictures ?? []);

/** Questions that got no answer are left out, but for the last. */
function sent(turns) {
  const isAnswer = (turn) => turn.role === "assistant" && !turn.error;
  return turns.filter((turn, idx) => isAnswer(turn) || (turn.role === "user" && (idx === turns.length - 1 || isAnswer(turns[idx + 1]))));
}

function content({ text, pictures }, isLow) {
  const parts = pictures.map(({ url }) => ({ type: "image_url", image_url: { url, ...(isLow && { detail: "low" }) } }));
  return [...parts, { type: "text", text }];
}

/** Name → code that asks the same. Pictures are read from files of their names. `address`: of the server. */
export function asCode(body, pictures, address, needsKey) {
  const names = pictures.map(({ name }) => name);
  return { curl: asCurl(body, names, address, needsKey), Python: asPython(body, names, address, needsKey) };
}

/** Stands for a picture while the code around it is written; no text that was typed can hold it. */
const MARK = `@${Math.random().toString(36).slice(2)}`;

/** A copy of the body with `change(url)` in place of each picture's data, which is not copied. */
export function withUrls(body, change) {
  const isPicture = (key, value) => key === "url" && typeof value === "string" && value.startsWith("data:");
  return JSON.parse(JSON.stringify(body, (key, value) => (isPicture(key, value) ? change(value) : value)));
}

/** The body with `mark(idx, type)` in place of each picture's data. */
function withMarks(body, mark) {
  let idx = 0;
  return withUrls(body, (url) => mark(idx++, url.slice(5, url.indexOf(";"))));
}

const shellQuoted = (name) => `'${name.replaceAll("'", `'\\''`)}'`;

/** JSON in a here-document whose $, ` and \ mean themselves; pictures come in by $(base64 …). */
function asCurl(body, names, address, needsKey) {
  const files = [];
  const marked = withMarks(body, (idx, type) => {
    files.push([`${MARK} ${idx}@`, `data:${type};base64,$(base64 -w0 ${shellQuoted(fileName(names[idx]))})`]);
    return files.at(-1)[0];
  });
  let json = JSON.stringify(marked, null, 2).replace(/[\\$`]/g, "\\$&");
  for (const [mark, read] of files) json = json.replace(mark, () => read);
  const key = needsKey ? ` \\\n  -H "Authorization: Bearer $VL2_API_KEY"` : "";
  return `curl -s ${shellQuoted(`${address}/v1/chat/completions`)} \\\n  -H 'Content-Type: application/json'${key} -d @- <<EOF\n${json}\nEOF\n`;
}

function asPython(body, names, address, needsKey) {
  const { messages, ...rest } = withMarks(body, (idx, type) => `${MARK} ${idx} ${type}@`);
  const standard = ["model", "stop", "temperature", "max_tokens", "top_p", "seed", "response_format"]; // the client's own arguments
  const own = Object.fromEntries(Object.entries(rest).filter(([name]) => !standard.includes(name)));
  const literal = (value, depth) =>
    pythonLiteral(value, depth).replace(new RegExp(`"${MARK} (\\d+) ([\\w/+.-]+)@"`, "g"), (_, idx, type) => `picture(${pythonText(fileName(names[idx]))}, "${type}")`);
  const fields = Object.entries(rest).filter(([name]) => standard.includes(name));
  const given = fields.map(([name, value]) => `    ${name}=${literal(value, 1)},\n`).join("");
  const extra = Object.keys(own).length ? `    extra_body=${literal(own, 1)},\n` : "";
  const key = needsKey ? 'os.environ["VL2_API_KEY"]' : '"none"';
  return `import base64
${needsKey ? "import os\n" : ""}
from openai import OpenAI


def picture(path, kind):
    with open(path, "rb") as file:
        return f"data:{kind};base64," + base64.b64encode(file.read()).decode()


client = OpenAI(base_url=${pythonText(`${address}/v1`)}, api_key=${key})
stream = client.chat.completions.create(
${given}${extra}    messages=${literal(messages, 1)},
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
`;
}

/** A name that opens no other folder. */
const fileName = (name) => name.replace(/[/\0]/g, "_");
const pythonText = (text) => JSON.stringify(text); // what JSON escapes, Python reads alike

function pythonLiteral(value, depth) {
  const pad = "    ".repeat(depth + 1);
  const end = "    ".repeat(depth);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "string") return pythonText(value);
  if (Array.isArray(value)) return value.length ? `[\n${value.map((item) => `${pad}${pythonLiteral(item, depth + 1)},\n`).join("")}${end}]` : "[]";
  if (typeof value === "object") {
    const items = Object.entries(value).map(([key, item]) => `${pad}${pythonText(key)}: ${pythonLiteral(item, depth + 1)},\n`);
    return items.length ? `{\n${items.join("")}${end}}` : "{}";
  }
  return String(value);
}
