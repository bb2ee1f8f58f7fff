"""One answer in the making. A request with n choices is n sequences that share its prompt."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from vl2.core.types import FinishReason, GenerateRequest, ImageSpan, Prompt, SamplingParams
from vl2.engine.clock import SequenceClock
from vl2.engine.ngrams import NgramIndex
from vl2.engine.prefix import PageKeys

if TYPE_CHECKING:
    from vl2.engine.grammar import Constraint

UNKNOWN = -1
"""Stands in `token_ids` for a token that the device has sampled, or will, but that has not come back yet."""

PRIORITY_HEADSTART_S = 10.0
"""One class of priority is worth so much waiting: who waits long enough is served before any later request."""


class Sequence:
    """Two lengths are kept, `len(token_ids)` and `num_computed`; everything else is derived from them.

    `token_ids` holds the prompt and what was generated. The cache holds rows for the first `num_computed` of them. The
    difference is what the next steps must compute: the rest of the prompt, or the one token that was sampled last.
    """

    def __init__(
        self,
        request: GenerateRequest,
        choice_idx: int,
        max_context_tokens: int,
        *,
        arrival_s: float = 0.0,
        page_keys: PageKeys | None = None,
    ) -> None:
        assert request.params.seed is not None and request.params.max_tokens is not None
        self.request_id = request.request_id
        self.choice_idx = choice_idx
        self.prompt: Prompt = request.prompt
        self.params: SamplingParams = request.params
        self.token_ids = list(request.prompt.token_ids)
        self.max_length = min(len(self.token_ids) + request.params.max_tokens, max_context_tokens)
        options = request.options
        self.clock = SequenceClock(arrival_s)
        self.order = arrival_s + options.priority * PRIORITY_HEADSTART_S
        self.expires_s = None if options.deadline_s is None else arrival_s + options.deadline_s
        self.page_keys = page_keys  # None: shares no prefix
        self.num_cached_tokens: int | None = None  # of the prompt, found at its first admission
        self.num_computed = 0
        self.pages: list[int] = []
        self.row = -1  # of what the device keeps of it while it runs (engine/device_rows.py)
        self.admission = 0  # which admission of all it runs by; a new number each time
        self.tile_slots: dict[int, list[int]] = {}  # span index → feature slots, pinned while the span is computed
        self.output_counts: Counter[int] = Counter()
        self.finish_reason: FinishReason | None = None
        size = request.params.no_repeat_ngram_size
        self.ngrams = NgramIndex(size, request.prompt) if size else None
        self.constraint: Constraint | None = None  # of its grammar

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_pending(self) -> int:
        """Tokens whose cache rows are still to be computed; 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Whether all that is to be computed is the token it generated last."""
        return self.num_pending == 1 and self.num_output_tokens > 0

    @property
    def is_full(self) -> bool:
        """Whether its last token is on its way, so that nothing is left to compute."""
        return len(self.token_ids) >= self.max_length

    @property
    def knows_last_token(self) -> bool:
        return self.token_ids[-1] != UNKNOWN

    @property
    def needs_history(self) -> bool:
        """Whether choosing its next token takes the ids of all before it, on the host."""
        params = self.params
        has_penalties = bool(params.presence_penalty or params.frequency_penalty) or params.repetition_penalty != 1.0
        return has_penalties or self.ngrams is not None or self.constraint is not None

    @property
    def needs_only_draw(self) -> bool:
        return not (self.needs_history or self.params.logit_bias or self.params.logprobs is not None)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def is_new(self) -> bool:
        """Whether it has never been admitted."""
        return self.num_cached_tokens is None

    def spans_within(self, start: int, end: int) -> list[tuple[int, ImageSpan]]:
        """(index, span) of the pictures that overlap positions start … end - 1, in order."""
        return [
            (index, span)
            for index, span in enumerate(self.prompt.spans)
            if span.start < end and start < span.start + span.length
        ]

    def expect(self) -> None:
        """Its next token is being sampled: go on with the step after it before the id is known."""
        self.token_ids.append(UNKNOWN)

    def resolve(self, position: int, token_id: int, eos_token_id: int) -> bool:
        """Take the sampled token that was expected at `position`; True when it was the last."""
        self.token_ids[position] = token_id
        self.output_counts[token_id] += 1
        ends_at_eos = not self.params.ignore_eos or self.constraint is not None  # then it comes when nothing else can
        if token_id in self.params.stop_token_ids or (token_id == eos_token_id and ends_at_eos):
            self.finish_reason = FinishReason.STOP
        elif position + 1 >= self.max_length:
            self.finish_reason = FinishReason.LENGTH
        elif self.constraint is not None:
            self.constraint.accept(token_id)
        if self.is_finished:
            del self.token_ids[position + 1 :]  # what was computed beyond the end
        return self.is_finished
