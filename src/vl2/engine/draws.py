"""What a sequence's parameters and history do to the choice of its next token. No tensor is seen here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from vl2.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class LogitEdit:
    """What is added to, divided out of or banned from the logits of one row."""

    row: int
    bias: dict[int, float]
    seen_ids: list[int]  # for the repetition penalty: prompt and output
    repetition_penalty: float
    output_counts: dict[int, int]
    presence_penalty: float
    frequency_penalty: float
    banned_ids: list[int]


def edit_of(row: int, sequence: Sequence) -> LogitEdit | None:
    params = sequence.params
    has_counts = bool(params.presence_penalty or params.frequency_penalty)
    has_repetition = params.repetition_penalty != 1.0
    if not (params.logit_bias or has_repetition or has_counts or sequence.ngrams):
        return None
    return LogitEdit(
        row=row,
        bias=params.logit_bias,
        seen_ids=sorted(set(sequence.token_ids)) if has_repetition else [],
        repetition_penalty=params.repetition_penalty,
        output_counts=dict(sequence.output_counts) if has_counts else {},
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        banned_ids=sorted(sequence.ngrams.banned(sequence.token_ids)) if sequence.ngrams else [],
    )


def uniform(sequence: Sequence) -> float:
    """A number in [0, 1) that depends on (seed, choice, output position) alone, never on the batch or on history."""
    key = f"{sequence.params.seed}/{sequence.choice_idx}/{sequence.num_output_tokens}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
