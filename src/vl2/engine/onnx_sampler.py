"""Logits → tokens in numpy, one row at a time: what `sampler.py` and `ops/sampling/reference.py` do in torch.

Order: bias → penalties → grammar → temperature → min-p, top-k → top-p → draw. Logprobs are of the raw logits.
"""

from __future__ import annotations

import numpy as np

from vl2.core.types import SamplingParams, TokenLogprobs
from vl2.engine.draws import LogitEdit, edit_of, uniform
from vl2.engine.sequence import Sequence


def choose(logits: np.ndarray, sequence: Sequence) -> tuple[int, TokenLogprobs | None]:
    """logits [V] float32 → the sequence's next token."""
    edited = logits
    edit = edit_of(0, sequence)
    if edit is not None:
        edited = _edited(logits, edit)
    if sequence.constraint is not None:
        edited = _constrained(edited, logits, sequence.constraint.next_mask.result())
    params = sequence.params
    token_id = draw(edited, params, uniform(sequence)) if params.temperature else int(edited.argmax())
    return token_id, None if params.logprobs is None else _logprobs(logits, token_id, params.logprobs)


def _edited(logits: np.ndarray, edit: LogitEdit) -> np.ndarray:
    row = logits.copy()
    if edit.bias:
        row[list(edit.bias)] += np.asarray(list(edit.bias.values()), np.float32)
    if edit.seen_ids:
        seen = row[edit.seen_ids]
        row[edit.seen_ids] = np.where(seen > 0, seen / edit.repetition_penalty, seen * edit.repetition_penalty)
    if edit.output_counts:
        counts = np.asarray(list(edit.output_counts.values()), np.float32)
        row[list(edit.output_counts)] -= edit.presence_penalty + edit.frequency_penalty * counts
    if edit.banned_ids:
        row[edit.banned_ids] = -np.inf
    return row


def _constrained(edited: np.ndarray, raw: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Only what the grammar allows. Where a ban has left nothing of that, the ban does not count."""
    kept = np.where(allowed, edited, -np.inf)
    return kept if np.isfinite(kept).any() else np.where(allowed, raw, -np.inf)


def draw(logits: np.ndarray, params: SamplingParams, uniform: float) -> int:
    """Inverse transform sampling over the kept tokens in order of probability, equal ones by id."""
    scaled = logits.astype(np.float64) / params.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    probs = probs[order]
    probs[probs < params.min_p * probs[0]] = 0.0
    if params.top_k:
        probs[params.top_k :] = 0.0
    mass = probs.cumsum()
    # The smallest set of tokens whose mass reaches top_p: those before which less than top_p has been collected.
    probs[mass - probs >= params.top_p * mass[-1]] = 0.0
    mass = probs.cumsum()
    picked = int((mass <= uniform * mass[-1]).sum())
    return int(order[min(picked, int((probs > 0).sum()) - 1)])


def _logprobs(logits: np.ndarray, token_id: int, num_top: int) -> TokenLogprobs:
    shifted = logits.astype(np.float64) - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    best = np.argsort(-logprobs, kind="stable")[:num_top]
    return TokenLogprobs(float(logprobs[token_id]), tuple((int(idx), float(logprobs[idx])) for idx in best))
