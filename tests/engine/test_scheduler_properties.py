"""Random traffic against scheduler, pages and tile slots; a model is imagined that answers at once or a step later.

Whatever arrives, grows, is cancelled, preempted or fails: nothing leaks, nothing is shared that may not be, no budget
is exceeded, and every request ends exactly once.
"""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.engine.builders import EOS_ID, PAGE_SIZE, picture_prompt, scheduler, sequence, text_prompt
from vl2.core.types import QueueOptions
from vl2.engine.scheduler import Chunk, Scheduler, StepBatch, StepOutput
from vl2.engine.sequence import Sequence

MAX_LENGTH = 40  # tokens of a prompt and its answer
PICTURES = st.lists(st.sampled_from([b"cat", b"dog", b"cow"]), max_size=3)


class Traffic(RuleBasedStateMachine):
    @initialize(
        pages=st.integers(-(-MAX_LENGTH // PAGE_SIZE), 24),
        slots=st.integers(2, 6),
        sequences=st.integers(1, 6),
        tokens=st.integers(1, 30),
        tiles=st.integers(1, 4),
        overlaps=st.booleans(),
        replays=st.booleans(),
    )
    def start(self, overlaps: bool, replays: bool, **limits: int) -> None:
        self.overlaps = overlaps  # a step is sent off before the tokens of the one before it are back
        self.in_flight: tuple[StepBatch, StepOutput] | None = None
        self.limits = limits
        self.scheduler: Scheduler = scheduler(**limits, replays=replays)
        self.endings: Counter[str] = Counter()
        self.asked: dict[str, Sequence] = {}
        self.clock_s = 0.0

    @rule(
        ids=st.lists(st.integers(2, 4), min_size=1, max_size=12),
        pictures=PICTURES,
        max_tokens=st.integers(1, 12),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "x"]),
    )
    def arrive(self, ids: list[int], pictures: list[bytes], max_tokens: int, priority: int, salt: str) -> None:
        prompt = picture_prompt(*pictures, before=(0,), after=tuple(ids)) if pictures else text_prompt(*ids)
        self.clock_s += 1.0
        options = QueueOptions(priority=priority, cache_salt=salt)
        seq = sequence(prompt, MAX_LENGTH, arrival_s=self.clock_s, options=options, max_tokens=max_tokens)
        self.scheduler.add(seq)
        self.asked[seq.request_id] = seq

    @precondition(lambda self: self.scheduler.has_work or self.in_flight)
    @rule(answers=st.lists(st.sampled_from([EOS_ID, 2, 3, 4]), min_size=8, max_size=8))
    def step(self, answers: list[int]) -> None:
        batch = self.scheduler.schedule()
        self.check(batch.chunks)
        assert len(batch.tile_jobs) <= self.limits["tiles"]
        assert batch or self.in_flight, "with work to do, every step does some of it"
        num = len(batch.sampled)
        self.scheduler.advance(batch)
        launched = (batch, StepOutput((answers * num)[:num], [None] * num))
        if not self.overlaps:
            self.in_flight = launched
        self.collect()
        if self.overlaps and batch:
            self.in_flight = launched

    def collect(self) -> None:
        if self.in_flight is not None:
            for event in self.scheduler.update(*self.in_flight):
                self.endings[event.request_id] += event.finish_reason is not None
        self.in_flight = None

    @precondition(lambda self: self.scheduler.has_work)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(list(self.scheduler.sequences())))
        self.scheduler.abort(seq.request_id)
        self.endings[seq.request_id] += 1

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self.scheduler.preempt(data.draw(st.sampled_from(self.scheduler.running)))

    @precondition(lambda self: self.scheduler.has_work)
    @rule()
    def a_step_fails(self) -> None:
        for request_id in self.scheduler.fail(self.scheduler.schedule()):
            self.endings[request_id] += 1

    def check(self, chunks: list[Chunk]) -> None:
        assert len(chunks) <= self.limits["sequences"]
        prefill = [chunk for chunk in chunks if not chunk.decodes]
        assert sum(chunk.length for chunk in prefill) <= self.limits["tokens"]
        if self.scheduler.replays:
            assert len(prefill) in (0, len(chunks)), "a step is of one kind"
            assert all(chunk.end <= chunk.sequence.num_prompt_tokens for chunk in prefill)
        for chunk in chunks:
            seq = chunk.sequence
            assert chunk.start == seq.num_computed and chunk.end <= len(seq.token_ids)
            assert len(seq.pages) * PAGE_SIZE >= chunk.end
            for index, _ in seq.spans_within(chunk.start, chunk.end):
                assert self.scheduler.tiles.are_encoded(seq.tile_slots[index])
        written = Counter(seq.pages[p // PAGE_SIZE] for seq, p in _positions(chunks))
        for seq in self.scheduler.running:
            for page in set(seq.pages[: seq.num_computed // PAGE_SIZE]):
                assert page not in written, "a page that others may read is never written again"

    @invariant()
    def nothing_leaks_or_aliases(self) -> None:
        pool = self.scheduler.pages
        held = Counter(page for seq in self.scheduler.running for page in seq.pages)
        assert len(held) == pool.num_pages - pool.num_free
        assert all(not seq.pages and not seq.tile_slots for seq in self.scheduler.waiting)
        for seq in self.scheduler.running:
            unfilled = seq.pages[seq.num_computed // PAGE_SIZE :]
            assert all(held[page] == 1 for page in unfilled), "a page that is being written belongs to one sequence"

    def teardown(self) -> None:
        """No starvation: without new arrivals, everything ends; each once, and all room is given back."""
        steps = 0
        while self.scheduler.has_work or self.in_flight:
            self.step([EOS_ID, 2, 3, 4, 2, 3, 4, 2])
            steps += 1
            assert steps < 4000
        assert all(self.endings[request_id] == 1 for request_id in self.asked)
        assert self.scheduler.pages.num_free == self.scheduler.pages.num_pages
        slots = self.scheduler.tiles.num_slots
        assert self.scheduler.tiles.acquire([bytes([i]) for i in range(slots)]) is not None


def _positions(chunks: list[Chunk]) -> list[tuple[Sequence, int]]:
    return [(chunk.sequence, position) for chunk in chunks for position in range(chunk.start, chunk.end)]


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
