"""Token ids → text that may be shown now, one token at a time."""

from __future__ import annotations

import codecs

from vl2.processing.tokenizer import Tokenizer


class Detokenizer:
    """Text of one answer while it is generated.

    Held back until it is clear what they are: bytes of an unfinished UTF-8 character, and text that a stop string may
    begin with. So what was shown never changes: the concatenation of all results of `push` and `finish` is the whole
    text, cut before the first stop string. EOS adds no text; other special tokens (grounding tags) do.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_between = True  # characters: nothing is held by the decoder
        self._held = ""
        self.stop_string: str | None = None
        """The one that was met; no text comes any more."""

    @property
    def stopped(self) -> bool:
        return self.stop_string is not None

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that is certain by now, often ""."""
        if self.stopped or token_id == self._tokenizer.eos_id:
            return ""
        text = self._text(token_id)
        if not self._stop:
            return text
        self._held += text
        return self._release(keep=_longest_beginning(self._held, self._stop))

    def _text(self, token_id: int) -> str:
        """What a token adds; most are whole characters, and known."""
        whole = self._tokenizer.whole_text(token_id) if self._is_between else None
        if whole is not None:
            return whole
        text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
        self._is_between = not self._decoder.getstate()[0]
        return text

    def finish(self) -> str:
        """The answer has ended: whatever was held back. Bytes of an unfinished character become U+FFFD."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        return self._release(keep=0)

    def _release(self, keep: int) -> str:
        """The held text, cut at a stop string, or without its last `keep` characters."""
        found = _first_stop(self._held, self._stop)
        if found is not None:
            start, self.stop_string = found
            text, self._held = self._held[:start], ""
            return text
        end = len(self._held) - keep
        text, self._held = self._held[:end], self._held[end:]
        return text


def _first_stop(text: str, stop: tuple[str, ...]) -> tuple[int, str] | None:
    """Which stop string is complete first, as if the text came character by character, and where it begins."""
    matches = [(start + len(word), start, word) for word in stop if (start := text.find(word)) >= 0]
    return min(matches)[1:] if matches else None


def _longest_beginning(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that a stop string begins with (and goes on)."""
    longest = min(len(text), max(map(len, stop), default=1) - 1)
    return next(
        (length for length in range(longest, 0, -1) if any(word.startswith(text[-length:]) for word in stop)), 0
    )
