"""An answer under way, read by a task of its own, so that a slow reader delays nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from vl2.core.errors import DeadlineExceeded, EngineError
from vl2.core.mailbox import Mailbox
from vl2.core.types import Completion, Delta, fold_deltas


class Answer:
    """Iterate over its pieces, then (or instead) `aclose` it, which aborts what is left.

    The task takes tokens as the engine gives them: stop strings end the work at once, and what a reader has not taken
    yet waits here, merged into one piece a choice, while the engine's pages are free again.
    """

    def __init__(self, deltas: AsyncGenerator[Delta, None], expires_s: float | None = None) -> None:
        """`expires_s`: on the event loop's clock; then the answer breaks with DeadlineExceeded."""
        self._waiting: Mailbox[Delta | None] = Mailbox()  # None: it is over
        self._error: Exception | None = None
        self._task = asyncio.ensure_future(self._take(deltas))
        self._timer = None if expires_s is None else asyncio.get_running_loop().call_at(expires_s, self._expire)

    async def _take(self, deltas: AsyncGenerator[Delta, None]) -> None:
        try:
            async for delta in deltas:
                self._waiting.put(delta)
        except Exception as error:
            self._error = self._error or error
        finally:
            await deltas.aclose()
            self._waiting.put(None)

    def _expire(self) -> None:
        if not self._task.done():
            self._error = DeadlineExceeded("the request's own deadline (X-Request-Timeout) passed")
            self._task.cancel()

    async def begin(self) -> None:
        """Returns when the first piece is there. Raises: what the answer began with, if that was an error."""
        await self._waiting.wait()
        if self._waiting.first is None:
            raise self._error or EngineError("the engine gave no answer")

    async def batches(self) -> AsyncIterator[list[Delta]]:
        """Whatever has come since the last time, one piece a choice. Raises: as the engine."""
        while True:
            await self._waiting.wait()
            taken = self._waiting.take()
            deltas = [delta for delta in taken if delta is not None]
            if deltas:
                yield merge(deltas)
            if len(deltas) < len(taken):
                break
        if self._error is not None:
            raise self._error

    async def fold(self) -> Completion:
        try:
            return fold_deltas([delta async for batch in self.batches() for delta in batch])
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def merge(deltas: list[Delta]) -> list[Delta]:
    """One piece for each choice; that of the last delta comes last, as it may carry the usage."""
    if len(deltas) == 1:
        return deltas
    by_choice: dict[int, list[Delta]] = {}
    for delta in deltas:
        own = by_choice.pop(delta.choice_idx, [])
        own.append(delta)
        by_choice[delta.choice_idx] = own
    return [own[0] if len(own) == 1 else _joined(own) for own in by_choice.values()]


def _joined(own: list[Delta]) -> Delta:
    last = own[-1]
    return Delta(
        choice_idx=last.choice_idx,
        text="".join(delta.text for delta in own),
        token_ids=tuple(token_id for delta in own for token_id in delta.token_ids),
        logprobs=tuple(entry for delta in own for entry in delta.logprobs),
        finish_reason=last.finish_reason,
        grounding=last.grounding,
        prompt_token_ids=next((d.prompt_token_ids for d in own if d.prompt_token_ids is not None), None),
        usage=last.usage,
        stop_string=last.stop_string,
    )
