"""A model without a model: plays a script, and remembers what it was asked and when it was let go."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vl2.core.errors import SetupError
from vl2.core.stats import EngineStats, ModelInfo, ReplicaStats
from vl2.core.types import (
    IMAGE_TAG,
    Delta,
    FinishReason,
    GroundedObject,
    ImageSource,
    ImageSpan,
    Message,
    Prompt,
    QueueOptions,
    SamplingParams,
    TokenText,
    Usage,
)

Step = Delta | BaseException | asyncio.Event
"""What a script does next: give a delta, raise an error, or be silent until the event is set."""

INFO = ModelInfo(
    max_context_tokens=4096,
    max_prompt_tiles=18,
    vocab_size=1000,
    device="cpu",
    dtype="float32",
    num_parameters=1_000_000,
    weights_bytes=4_000_000,
    num_pages=256,
    page_size_tokens=16,
    fingerprint="vl2-d-test",
)


class FakeModel:
    """Implements `vl2.core.interface.ChatModel`."""

    def __init__(
        self,
        script: Sequence[Step] | Callable[[Sequence[Message], SamplingParams], Sequence[Step]] | None = None,
        *,
        name: str = "fake",
        is_ready: bool = True,
        loading: asyncio.Event | None = None,
        setup_error: SetupError | None = None,
    ) -> None:
        """Without a script it answers "A red square." `start` waits for `loading`, then raises `setup_error`."""
        self.name = name
        self.is_ready = is_ready
        self.is_failed = False
        self.info = INFO
        self.current_stats = EngineStats(num_running=1, num_pages=256, generated_tokens_total=7)
        self.asked: list[tuple[list[Message], SamplingParams]] = []
        self.options: list[QueueOptions] = []
        self.request_ids: list[str | None] = []
        self.counted_for: list[str] = []  # tenants whose tokens were counted
        self.num_cancelled = 0
        self.closed = threading.Event()  # set whenever a stream has ended, in whatever way
        self.is_stopped = False
        self._script = script
        self._loading = loading
        self._setup_error = setup_error

    async def start(self) -> None:
        if self._loading is not None:
            await self._loading.wait()
        if self._setup_error is not None:
            raise self._setup_error
        self.is_ready = True

    async def stop(self) -> None:
        self.is_ready, self.is_stopped = False, True

    async def wait_failed(self) -> str:
        await asyncio.Event().wait()
        return ""

    async def replica_stats(self) -> list[ReplicaStats]:
        return [ReplicaStats(self.is_ready, self.current_stats)]

    async def process(self, messages: Sequence[Message], tenant: str = "") -> Prompt:
        """A token for each word, and 10 for each picture of 64 × 32 pixels in two tiles."""
        self.counted_for.append(tenant)
        words = [word for message in messages for word in message.content.replace(IMAGE_TAG, " ").split()]
        num_pictures = sum(len(message.images) for message in messages)
        spans = tuple(ImageSpan(1 + 10 * idx, 10, 2 * idx, 2, 1, 1, 64, 32) for idx in range(num_pictures))
        token_ids = [0] + [9] * 10 * num_pictures + [20 + idx for idx in range(len(words))]
        return Prompt(token_ids, spans, np.empty((0, 8, 8, 3), np.uint8), ())

    async def pdf_pages(self, data: bytes, pages: str | None = None) -> list[Image.Image]:
        """Each page is one pixel: its number, as grey."""
        return [Image.new("RGB", (1, 1), (int(number),) * 3) for number in (pages or "1,2").split(",")]

    async def open_picture(self, source: ImageSource) -> Image.Image:
        """Bytes are taken for an encoded picture."""
        return Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source

    async def stream(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        *,
        options: QueueOptions = QueueOptions(),
        request_id: str | None = None,
    ) -> AsyncIterator[Delta]:
        self.asked.append((list(messages), params))
        self.options.append(options)
        self.request_ids.append(request_id)
        is_over = False
        try:
            for step in self._steps(messages, params):
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, BaseException):
                    is_over = True
                    raise step
                else:
                    is_over = step.usage is not None
                    yield step
        finally:
            self.num_cancelled += not is_over
            self.closed.set()

    def _steps(self, messages: Sequence[Message], params: SamplingParams) -> Sequence[Step]:
        if self._script is None:
            return answer("A red square.", n=params.n, logprobs=params.logprobs)
        return self._script(messages, params) if callable(self._script) else self._script


def answer(
    text: str,
    *,
    n: int = 1,
    logprobs: int | None = None,
    grounding: tuple[GroundedObject, ...] | None = None,
    finish_reason: FinishReason = FinishReason.STOP,
    usage: Usage | None = None,
) -> list[Delta]:
    """`n` equal answers that take turns, a word a token; then EOS (id 1), which has no text."""
    words = [word + " " for word in text.split(" ")]
    words[-1] = words[-1][:-1]
    tokens = [(100 + idx, word) for idx, word in enumerate(words)] + [(1, "")]
    deltas = [
        Delta(
            choice_idx=choice_idx,
            text=word,
            token_ids=(token_id,),
            logprobs=() if logprobs is None else (token_text(token_id, word, num_top=logprobs),),
            finish_reason=finish_reason if token_id == 1 else None,
            grounding=grounding if token_id == 1 else None,
        )
        for token_id, word in tokens
        for choice_idx in range(n)
    ]
    used = usage or Usage(prompt_tokens=10, completion_tokens=n * len(tokens), image_tokens=4, cached_tokens=2)
    deltas[0] = _with(deltas[0], prompt_token_ids=(0, 7, 8))
    deltas[-1] = _with(deltas[-1], usage=used)
    return deltas


def token_text(token_id: int, text: str, *, num_top: int = 0, logprob: float = -0.5) -> TokenText:
    top = tuple(TokenText(token_id + i, text, text.encode(), logprob - i) for i in range(num_top))
    return TokenText(token_id, text, text.encode(), logprob, top)


def _with(delta: Delta, **changes: Any) -> Delta:
    return dataclasses.replace(delta, **changes)
