"""What the next step computes, and what its result means. Ints and lists only; no tensor is seen here.

A step is a list of `Chunk`s. A chunk of one token is decoding, a longer one is prefill or a part of it: one case.
Running sequences come first, in the order in which they are to be served; prompts fill what the pacer allows beside.

Where generated tokens are computed otherwise than prompts (`replays`: the deterministic mode of a GPU), that would show
in the last bits: there a step is of one kind, a preempted answer is generated again token by token, and only what
prompts computed is shared.

A step ends twice. `advance` takes it as done when it is on its way to the device, so that the next one can be planned;
`update` takes its tokens when they are back, which may be after the next one was sent off.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from vl2.core.types import FinishReason, TokenEvent, TokenLogprobs
from vl2.engine.image_cache import TileCache
from vl2.engine.pacing import Pacer, StepLoad
from vl2.engine.pages import PagePool
from vl2.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start : start + length` of a sequence."""

    sequence: Sequence
    start: int
    length: int
    is_last: bool  # whether the sequence's next token is sampled after it

    @classmethod
    def of(cls, sequence: Sequence, start: int, end: int) -> Chunk:
        return cls(sequence, start, end - start, end == len(sequence.token_ids))

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def decodes(self) -> bool:
        """Whether it is one generated token."""
        return self.length == 1 and self.start >= self.sequence.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class TileJob:
    """Encode tile `tile_idx` of the sequence's prompt into feature slot `slot`."""

    sequence: Sequence
    tile_idx: int
    slot: int


@dataclass(frozen=True, slots=True)
class StepBatch:
    chunks: list[Chunk]
    tile_jobs: list[TileJob]

    def __bool__(self) -> bool:
        return bool(self.chunks or self.tile_jobs)

    @property
    def load(self) -> StepLoad:
        num_decodes = sum(chunk.decodes for chunk in self.chunks)
        num_tokens = sum(chunk.length for chunk in self.chunks)
        return StepLoad(num_decodes, num_tokens - num_decodes, len(self.tile_jobs))

    @property
    def is_decode(self) -> bool:
        """Whether every chunk is one generated token."""
        return all(chunk.decodes for chunk in self.chunks)

    @property
    def num_leading_decodes(self) -> int:
        """Answers come first; what a preempted one generated may be computed once more behind them."""
        return sum(1 for _ in itertools.takewhile(lambda chunk: chunk.decodes, self.chunks))

    @property
    def needs_only_draws(self) -> bool:
        """Whether all tokens can be sampled on the device: no logprobs, bias, penalties or grammars."""
        return all(chunk.sequence.needs_only_draw for chunk in self.sampled)

    @property
    def sampled(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.is_last]

    def without_last_token(self, late: list[Chunk]) -> StepBatch:
        """As if the last token of the `late` chunks had not been computed: it will be, in the next step."""
        shorter = [
            replace(chunk, length=chunk.length - 1, is_last=False) if chunk in late else chunk for chunk in self.chunks
        ]
        return StepBatch([chunk for chunk in shorter if chunk.length], self.tile_jobs)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """For each of `StepBatch.sampled`: the token, and logprobs where they were asked for."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]


@dataclass(slots=True)
class StepBudget:
    """What a step may still take."""

    prefill_tokens: int
    tiles: int
    batch: StepBatch = field(default_factory=lambda: StepBatch([], []))

    def add_prefill(self, chunk: Chunk) -> None:
        self.prefill_tokens -= chunk.length
        self.batch.chunks.append(chunk)


@dataclass(slots=True)
class SchedulerCounts:
    """Totals since the start."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0


class Scheduler:
    """`waiting` and `running` are kept in the order in which sequences are to be served: first come first served,
    shifted by priority. The last one gives way when pages run out.
    """

    def __init__(
        self,
        pages: PagePool,
        tiles: TileCache,
        pacer: Pacer,
        *,
        max_sequences: int,
        eos_token_id: int,
        replays: bool = False,
    ) -> None:
        self.pages, self.tiles, self.pacer, self.replays = pages, tiles, pacer, replays
        self._prompt_tokens = 0  # computed since an answer's token was, where a step is of one kind
        self.max_sequences, self.eos_token_id = max_sequences, eos_token_id
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._admissions = itertools.count(1)
        self._free_rows = list(range(max_sequences - 1, -1, -1))
        self.counts = SchedulerCounts()

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def needs_history(self) -> bool:
        """Whether the next step cannot be prepared before the tokens of the last one are known."""
        return any(sequence.needs_history for sequence in self.running)

    def add(self, sequence: Sequence) -> None:
        _insert(self.waiting, sequence)

    def expire(self, now_s: float) -> list[str]:
        """Drop the requests whose deadline passed before they were begun; returns their ids."""
        late = [s for s in self.waiting if s.is_new and s.expires_s is not None and s.expires_s <= now_s]
        request_ids = list(dict.fromkeys(sequence.request_id for sequence in late))
        for request_id in request_ids:
            self.abort(request_id)
        return request_ids

    def schedule(self) -> StepBatch:
        """Chunks and tiles of the next step; empty when there is nothing to do."""
        num_decodes = len(self._decoding())
        budget = StepBudget(self.pacer.prefill_tokens(num_decodes), self.pacer.tiles(num_decodes))
        if self.replays:
            self._schedule_one_kind(num_decodes, budget)
        else:
            self._plan_answers(budget)
            self._plan_prompts(budget)
        return budget.batch

    def _schedule_one_kind(self, num_decodes: int, budget: StepBudget) -> None:
        """Prompts for as long as answers may stand still, then one token of each answer."""
        if not num_decodes or self.pacer.allows(self._prompt_tokens, budget.prefill_tokens, num_decodes):
            self._plan_prompts(budget)
        if budget.batch.chunks:
            self._prompt_tokens += budget.batch.load.num_prefill_tokens
        else:
            self._plan_answers(budget)
            self._prompt_tokens = 0

    def _plan_answers(self, budget: StepBudget) -> None:
        for sequence in self._decoding():
            if sequence in self.running and self._make_room(sequence):
                start = sequence.num_computed
                budget.batch.chunks.append(Chunk.of(sequence, start, start + 1))

    def _decoding(self) -> list[Sequence]:
        return [sequence for sequence in self.running if self._decodes(sequence) and not sequence.is_full]

    def _decodes(self, sequence: Sequence) -> bool:
        """Whether its next chunk is one generated token."""
        if self.replays:
            return sequence.num_computed >= sequence.num_prompt_tokens
        return sequence.is_decoding

    def _plan_prompts(self, budget: StepBudget) -> None:
        """Those that run, then those that wait, in order."""
        for sequence in self.running:
            if not self._decodes(sequence):
                self._plan(sequence, budget)
        while budget.prefill_tokens > 0 and self.waiting and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            if not sequence.knows_last_token or not self._admit(sequence):
                break
            self.waiting.pop(0)
            _insert(self.running, sequence)
            self._plan(sequence, budget)

    def advance(self, batch: StepBatch) -> None:
        """A step is on its way: what it computes counts as computed, what it samples is expected."""
        for chunk in batch.chunks:
            chunk.sequence.num_computed = chunk.end
            self._unpin_computed(chunk.sequence)
            if chunk.is_last:
                chunk.sequence.expect()

    def update(self, batch: StepBatch, output: StepOutput) -> list[TokenEvent]:
        """Take the result of a step that was advanced. Finished sequences give their pages back here.

        Sequences that ended in the meantime get nothing: the step that had been sent off for them was for nothing.
        """
        for chunk in batch.chunks:
            if not chunk.sequence.is_finished and chunk.end <= chunk.sequence.num_computed:  # not preempted since
                self._publish(chunk)
        events = []
        for chunk, token_id, logprobs in zip(batch.sampled, output.token_ids, output.logprobs, strict=True):
            sequence = chunk.sequence
            if sequence.is_finished:
                continue
            is_end = sequence.resolve(chunk.end, token_id, self.eos_token_id)
            events.append(
                TokenEvent(
                    sequence.request_id,
                    sequence.choice_idx,
                    token_id,
                    logprobs,
                    sequence.finish_reason,
                    sequence.num_cached_tokens or 0,
                )
            )
            if is_end:
                self._retire(sequence)
        return events

    def abort(self, request_id: str, choice_idx: int | None = None) -> None:
        """Drop a request, or one choice of it, wherever it is."""
        for sequence in [*self.running, *self.waiting]:
            if sequence.request_id == request_id and choice_idx in (None, sequence.choice_idx):
                sequence.finish_reason = FinishReason.ABORT
                self._retire(sequence)

    def fail(self, batch: StepBatch) -> list[str]:
        """A step went wrong: drop the requests it was for; returns their ids."""
        self.tiles.invalidate([job.slot for job in batch.tile_jobs])
        concerned = [*(chunk.sequence for chunk in batch.chunks), *(job.sequence for job in batch.tile_jobs)]
        request_ids = list(dict.fromkeys(sequence.request_id for sequence in concerned))
        for request_id in request_ids:
            self.abort(request_id)
        return request_ids

    def preempt(self, sequence: Sequence) -> None:
        """Take its pages; it starts over from its tokens, generated ones included, when its turn comes again."""
        self.running.remove(sequence)
        self._free(sequence)
        sequence.num_computed = 0
        _insert(self.waiting, sequence)
        self.counts.preemptions += 1

    def _admit(self, sequence: Sequence) -> bool:
        """Pages for all its tokens, known ones where the cache has them; the last token is always computed anew."""
        num_tokens = len(sequence.token_ids)
        num_shared = min(num_tokens - 1, self._prompt_end(sequence))
        keys = sequence.page_keys.upto(sequence.token_ids, num_shared) if sequence.page_keys else []
        sequence.pages = self.pages.match(keys)
        num_known = len(sequence.pages) * self.pages.page_size
        if not self.pages.grow(sequence.pages, num_tokens):
            self.pages.release(sequence.pages)
            return False
        sequence.num_computed = num_known
        sequence.row = self._free_rows.pop()
        sequence.admission = next(self._admissions)
        if sequence.is_new:
            for other in self.waiting if sequence.params.n > 1 else ():
                if other.request_id == sequence.request_id:  # which has begun, whatever its other choices wait for
                    other.expires_s = None
            sequence.num_cached_tokens = num_known
            self.counts.prompt_tokens += num_tokens
            self.counts.cached_tokens += num_known
        return True

    def _make_room(self, sequence: Sequence) -> bool:
        """A page for the next token, taken from the last in order where none is free."""
        while not self.pages.grow(sequence.pages, len(sequence.token_ids)):
            last = self.running[-1]
            self.preempt(last)
            if last is sequence:
                return False
        return True

    def _plan(self, sequence: Sequence, budget: StepBudget) -> None:
        """The longest chunk that fits the budget and whose pictures this step's tile batch completes."""
        start = sequence.num_computed
        end = min(self._prompt_end(sequence), start + budget.prefill_tokens)
        for index, span in sequence.spans_within(start, end):
            if not self._encode(sequence, index, budget):
                end = max(start, span.start)
                break
        if end > start:
            budget.add_prefill(Chunk.of(sequence, start, end))

    def _prompt_end(self, sequence: Sequence) -> int:
        """Tokens that are computed as prompts are."""
        return sequence.num_prompt_tokens if self.replays else len(sequence.token_ids)

    def _encode(self, sequence: Sequence, index: int, budget: StepBudget) -> bool:
        """Pin the span's slots and plan what is not encoded yet; True when all of it will be there."""
        span = sequence.prompt.spans[index]
        tile_range = range(span.first_tile, span.first_tile + span.num_tiles)
        if index not in sequence.tile_slots:
            slots = self.tiles.acquire([sequence.prompt.tile_keys[tile] for tile in tile_range])
            if slots is None:
                return False
            sequence.tile_slots[index] = slots
        slots = sequence.tile_slots[index]
        for slot in self.tiles.take_unencoded(slots, budget.tiles):
            budget.tiles -= 1
            budget.batch.tile_jobs.append(TileJob(sequence, tile_range[slots.index(slot)], slot))
        return self.tiles.are_encoded(slots)

    def _publish(self, chunk: Chunk) -> None:
        """Pages that this chunk filled can be shared from now on."""
        sequence = chunk.sequence
        if sequence.page_keys is None:
            return
        keys = sequence.page_keys.upto(sequence.token_ids, min(chunk.end, self._prompt_end(sequence)))
        for page_idx in range(chunk.start // self.pages.page_size, len(keys)):
            self.pages.publish(sequence.pages[page_idx], keys[page_idx])

    def _unpin_computed(self, sequence: Sequence) -> None:
        for index in list(sequence.tile_slots):
            span = sequence.prompt.spans[index]
            if span.start + span.length <= sequence.num_computed:
                self.tiles.release(sequence.tile_slots.pop(index))

    def _retire(self, sequence: Sequence) -> None:
        queue = self.running if sequence in self.running else self.waiting
        queue.remove(sequence)
        self._free(sequence)

    def _free(self, sequence: Sequence) -> None:
        if sequence.row >= 0:
            self._free_rows.append(sequence.row)
            sequence.row = -1
        self.pages.release(sequence.pages)
        for slots in sequence.tile_slots.values():
            self.tiles.release(slots)
        sequence.tile_slots.clear()

    def sequences(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting


def _insert(queue: list[Sequence], sequence: Sequence) -> None:
    """Behind all that are to be served before it or have the same turn."""
    bisect.insort_right(queue, sequence, key=lambda queued: queued.order)
