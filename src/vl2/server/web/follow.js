// An answer as it is streamed.

import { streamAnswer } from "./api.js";
import { t } from "./texts.js";

/** Fill `turn` with the answer to `body`; `show()` is called as it grows, at most once a frame, and at its end.
 *
 * Ends in every case: `turn.error`, `turn.status` and `turn.isLost` say what went wrong. Milliseconds are `turn.first` and `turn.whole`.
 */
export async function follow(turn, body, signal, show) {
  const started = performance.now();
  let frame = 0;
  const showSoon = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      if (turn.isRunning) show();
    });
  };
  try {
    for await (const chunk of streamAnswer(body, signal)) {
      turn.usage = chunk.usage ?? turn.usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      if (choice.delta.content) turn.first ??= performance.now() - started;
      turn.text += choice.delta.content ?? "";
      turn.grounding = choice.delta.grounding ?? turn.grounding;
      turn.reason = choice.finish_reason ?? turn.reason;
      showSoon();
    }
  } catch (error) {
    const isStopped = error.name === "AbortError";
    turn.isLost = !isStopped && !error.status; // the server cannot be reached
    turn.status = error.status;
    if (isStopped) turn.reason = "stopped";
    if (!isStopped || !turn.text) turn.error = isStopped ? t.stopped : turn.isLost ? t.lost : error.message;
  }
  turn.whole = performance.now() - started;
  turn.isRunning = false;
  show();
}
