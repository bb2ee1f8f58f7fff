// What the page says, in English and Chinese. Keys are the same in both.

const TEXTS = {
  en: {
    title: "vl2 – ask about a picture",
    welcome: "Ask about a picture",
    how: "It is answered on this server and sent nowhere else. Boxes are drawn where the model points.",
    drop: "Drop, paste or choose a picture",
    conversation: "Conversation",
    examples: "Example questions",
    pictures: "Pictures of your next question",
    picture: "Picture",
    add: "Add a picture",
    remove: "Remove this picture",
    question: "Your question",
    send: "Ask",
    stop: "Stop the answer",
    restart: "New conversation",
    you: "You",
    answering: "Answering …",
    answered: "Answered.",
    stopped: "stopped",
    cut: "cut off at the longest answer",
    tokens: (usage) =>
      `${usage.prompt_tokens} tokens in (${usage.prompt_tokens_details.image_tokens} of pictures), ${usage.completion_tokens} out`,
    seconds: (first, whole) => `first word ${first} s, whole ${whole} s`,
    keyNeeded: "This server needs an API key",
    keySave: "Use",
    keyWrong: "The server does not take this API key.",
    loading: "The model is loading …",
    notPicture: (name) => `${name} is not a picture that this browser can read.`,
    lost: "The connection to the server was lost.",
    chips: [
      "What is in the picture?",
      "<|grounding|>Describe the picture.",
      "How many cats are there?",
      "What does the text say?",
      "<|ref|>the dog<|/ref|>.",
    ],
  },
  zh: {
    title: "vl2 – 看图问答",
    welcome: "问一张图片",
    how: "由这台服务器回答，不会发往别处。模型指到的地方会画出方框。",
    drop: "拖入、粘贴或选择图片",
    conversation: "对话",
    examples: "示例问题",
    pictures: "下一个问题的图片",
    picture: "图片",
    add: "添加图片",
    remove: "移除这张图片",
    question: "你的问题",
    send: "提问",
    stop: "停止回答",
    restart: "新对话",
    you: "你",
    answering: "正在回答……",
    answered: "已回答。",
    stopped: "已停止",
    cut: "已达最大长度，回答被截断",
    tokens: (usage) =>
      `输入 ${usage.prompt_tokens} 个词元（图片 ${usage.prompt_tokens_details.image_tokens} 个），输出 ${usage.completion_tokens} 个`,
    seconds: (first, whole) => `首字 ${first} 秒，全部 ${whole} 秒`,
    keyNeeded: "此服务器需要 API 密钥",
    keySave: "使用",
    keyWrong: "服务器不接受此 API 密钥。",
    loading: "模型加载中……",
    notPicture: (name) => `浏览器无法读取图片 ${name}。`,
    lost: "与服务器的连接已断开。",
    chips: [
      "图片里有什么？",
      "<|grounding|>描述这张图片。",
      "图中有几只猫？",
      "文字写的是什么？",
      "<|ref|>狗<|/ref|>。",
    ],
  },
};

export const language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
export const t = TEXTS[language];

/** Fill in the texts that index.html asks for by name. */
export function translatePage() {
  document.documentElement.lang = language;
  document.title = t.title;
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = t[node.dataset.text];
  for (const node of document.querySelectorAll("[data-hint]")) node.placeholder = t[node.dataset.hint];
  for (const node of document.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", t[node.dataset.label]);
    if (node.tagName === "BUTTON") node.title = t[node.dataset.label];
  }
}
