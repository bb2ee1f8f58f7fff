"""Models that say what a test wants, when it wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from fakes import FakeModel, answer
from vl2.core.types import Box, Delta, GroundedObject, Message, SamplingParams

BOXES = {"the red box": ((200, 200, 600, 700),), "the corners": ((0, 0, 100, 200), (900, 800, 999, 999))}
"""Of the picture `scene` of 200 × 100, in the model's 0 … 999."""


def grounded(labels: dict[str, Any] = BOXES, width: int = 200, height: int = 100) -> list[Delta]:
    """An answer that points at things, with its boxes in pixels, as the engine gives them."""
    objects, words = [], []
    for label, boxes in labels.items():
        pixels = (Box(*(int(v / 999 * side) for v, side in zip(b, (width, height) * 2, strict=True))) for b in boxes)
        objects.append(GroundedObject(label, tuple(pixels), tuple(boxes)))
        words.append(f"<|ref|>{label}<|/ref|><|det|>{[list(box) for box in boxes]}<|/det|>")
    return answer("There is " + ", ".join(words) + ".", grounding=tuple(objects))


class PausingModel(FakeModel):
    """Says `before`, waits for `go_on()`, says the rest."""

    def __init__(self, before: str = "One two", after: str = " three four") -> None:
        self.gate = asyncio.Event()
        deltas = [*answer(before)[:-1], self.gate, *answer(after)[:-1], *answer("x")[-1:]]
        super().__init__(deltas)

    async def stream(self, messages: Sequence[Message], params: SamplingParams, **more: Any) -> AsyncIterator[Delta]:
        self.loop = asyncio.get_running_loop()
        async with aclosing(super().stream(messages, params, **more)) as deltas:
            async for delta in deltas:
                yield delta

    def go_on(self) -> None:
        self.loop.call_soon_threadsafe(self.gate.set)
