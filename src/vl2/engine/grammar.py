"""Answers under a grammar: which tokens may come next, found out while the device computes.

A mask is begun as soon as the token before it is known, in a thread; the step that needs it asks for it behind the
decoder. An answer whose mask is late sits that step out, so that the others do not wait for it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from vl2.core.errors import EngineError
from vl2.core.types import Grammar
from vl2.engine.scheduler import Chunk, StepBatch
from vl2.engine.sequence import Sequence
from vl2.processing.constrain import LIMITS, to_llguidance
from vl2.processing.grounding_grammar import GroundingMatcher, GroundingVocabulary
from vl2.processing.tokenizer import Tokenizer

log = logging.getLogger(__name__)

NUM_THREADS = 2
MAX_COMPILED = 32  # grammars that are kept for further requests
PATIENCE_S = 0.002
"""The longest that a step with other rows waits for masks."""
LONELY_PATIENCE_S = 0.05
"""The longest that a step without other rows waits for its first mask; then commands are taken."""


class Matcher(Protocol):
    """Follows one answer through its grammar."""

    def mask(self) -> np.ndarray:
        """[V] bool: the tokens allowed next, EOS where the answer may end."""

    def accept(self, token_id: int) -> None:
        """Go on by an allowed token other than EOS."""


class Constraint:
    """The grammar of one answer, and its next mask under way. Preemption does not concern it."""

    def __init__(self, open_matcher: Callable[[], Matcher], grammars: Grammars, *, ignore_eos: bool) -> None:
        self._open_matcher, self._grammars, self._ignore_eos = open_matcher, grammars, ignore_eos
        self._matcher: Matcher | None = None
        self.error: str | None = None
        """Why the answer cannot go on. From then on its mask allows EOS alone."""
        self.next_mask: Future[np.ndarray] = grammars.begin_pool.submit(self._compute, None)

    def accept(self, token_id: int) -> None:
        """Take the token that was drawn with `next_mask`, and begin the mask that follows it."""
        assert self.next_mask.done(), "a token is drawn with a mask, so the mask is there"
        self.next_mask = self._grammars.step_pool.submit(self._compute, token_id)

    def _compute(self, token_id: int | None) -> np.ndarray:
        eos_id = self._grammars.eos_id
        try:
            if self._matcher is None:
                self._matcher = self._open_matcher()
            if token_id is not None:
                self._matcher.accept(token_id)
            mask = self._matcher.mask()
            if not mask.any():
                raise EngineError("no token is allowed next")
        except Exception as error:  # concerns this answer alone; the engine ends it
            log.exception("a grammar failed")
            self.error = f"the grammar cannot be followed any further: {error}"
            mask = np.zeros(self._grammars.vocab_size, bool)
            mask[eos_id] = True
        if self._ignore_eos and mask[eos_id] and mask.sum() > 1:
            mask[eos_id] = False
        return mask


class Grammars:
    """Of one engine: the vocabulary in the forms that matchers need, made at the first use, and compiled grammars."""

    def __init__(self, folder: Path, vocab_size: int, eos_id: int) -> None:
        self.folder, self.vocab_size, self.eos_id = folder, vocab_size, eos_id
        # One thread, so that what is made once needs no lock; apart, so that a slow schema delays no running answer.
        self.begin_pool = ThreadPoolExecutor(1, thread_name_prefix="vl2-grammar-begin")
        self.step_pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="vl2-grammar")
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._tokenizer: Tokenizer | None = None
        self._ll_tokenizer: LLTokenizer | None = None
        self._grounding: GroundingVocabulary | None = None

    def constrain(self, sequence: Sequence) -> None:
        """Give a new sequence the constraint that its parameters ask for."""
        params = sequence.params
        if params.grammar is not None:
            sequence.constraint = Constraint(
                lambda: self._open(params.grammar, sequence), self, ignore_eos=params.ignore_eos
            )

    def _open(self, grammar: Grammar | None, sequence: Sequence) -> Matcher:
        """In the thread of `begin_pool`."""
        assert grammar is not None
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_folder(self.folder, self.vocab_size)
        if grammar.kind != "grounding":
            return _LLMatcher(self._compile(grammar, self._tokenizer).deep_copy(), self.vocab_size)
        if self._grounding is None:
            self._grounding = GroundingVocabulary(self._tokenizer, self.vocab_size, self.eos_id)
        prompt_ids = sequence.prompt.token_ids
        return GroundingMatcher(self._grounding, prompt_ids, sequence.max_length - len(prompt_ids))

    def _compile(self, grammar: Grammar, tokenizer: Tokenizer) -> LLMatcher:
        if grammar not in self._compiled:
            if self._ll_tokenizer is None:
                vocabulary = TokenizerWrapper(_Vocabulary(tokenizer, self.vocab_size, self.eos_id))
                self._ll_tokenizer = LLTokenizer(vocabulary, n_vocab=self.vocab_size)
            self._compiled[grammar] = LLMatcher(self._ll_tokenizer, to_llguidance(grammar), log_level=0, limits=LIMITS)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return self._compiled[grammar]


class _LLMatcher:
    """llguidance behind `Matcher`."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def mask(self) -> np.ndarray:
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(packed, count=self._vocab_size, bitorder="little").view(bool)

    def accept(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(self._matcher.get_error().partition("\n")[0])


class _Vocabulary:
    """A tokenizer as llguidance reads it. Ids without a token have no bytes and are never allowed."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_id: int) -> None:
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        self.special_token_ids = sorted(tokenizer.reserved_ids | {eos_id})
        self.eos_token_id, self.bos_token_id = eos_id, tokenizer.bos_id
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def late_chunks(batch: StepBatch) -> list[Chunk]:
    """Of `batch.sampled`, those that cannot be sampled now, as their mask is not there."""
    under_grammar = [chunk for chunk in batch.sampled if chunk.sequence.constraint is not None]
    masks = [chunk.sequence.constraint.next_mask for chunk in under_grammar if chunk.sequence.constraint is not None]
    if not masks:
        return []
    done, _ = wait(masks, PATIENCE_S)
    if not done and len(under_grammar) == len(batch.chunks):
        wait(masks, LONELY_PATIENCE_S, FIRST_COMPLETED)
    return [chunk for chunk, mask in zip(under_grammar, masks, strict=True) if not mask.done()]


def broken_requests(batch: StepBatch) -> dict[str, str]:
    """Request id → why its grammar failed."""
    return {
        chunk.sequence.request_id: chunk.sequence.constraint.error
        for chunk in batch.chunks
        if chunk.sequence.constraint is not None and chunk.sequence.constraint.error is not None
    }
