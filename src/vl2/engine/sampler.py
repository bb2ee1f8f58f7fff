"""Logits → tokens: bias → penalties → grammar → temperature → min-p, top-k → top-p → draw.

Logprobs are of the raw logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vl2.core.types import TokenLogprobs
from vl2.engine.batch import SamplingInputs
from vl2.engine.draws import LogitEdit
from vl2.engine.scheduler import StepOutput
from vl2.ops.backend import Backend


def choose(ops: Backend, logits: torch.Tensor, inputs: SamplingInputs) -> StepOutput:
    """logits [L, V] float32 → a token for each row. Rows do not influence each other."""
    edited = logits
    if inputs.edits or inputs.masks:
        edited = logits.clone()
        for edit in inputs.edits:
            _apply(edited[edit.row], edit)
        for row, allowed in inputs.masks:
            _constrain(edited[row], logits[row], torch.from_numpy(allowed).to(logits.device))
    chosen = ops.sample(edited, inputs.rows)
    return StepOutput(chosen.tolist(), _logprobs(logits, chosen, inputs))


def _apply(row: torch.Tensor, edit: LogitEdit) -> None:
    """Change one row [V] in place."""

    def ids(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=row.device)

    if edit.bias:
        row[ids(list(edit.bias))] += torch.tensor(list(edit.bias.values()), device=row.device)
    if edit.seen_ids:
        seen = row[ids(edit.seen_ids)]
        penalty = edit.repetition_penalty
        row[ids(edit.seen_ids)] = torch.where(seen > 0, seen / penalty, seen * penalty)
    if edit.output_counts:
        counts = torch.tensor(list(edit.output_counts.values()), dtype=row.dtype, device=row.device)
        row[ids(list(edit.output_counts))] -= edit.presence_penalty + edit.frequency_penalty * counts
    if edit.banned_ids:
        row[ids(edit.banned_ids)] = float("-inf")


def _constrain(row: torch.Tensor, raw: torch.Tensor, allowed: torch.Tensor) -> None:
    """Only what the grammar allows, in place. Where a ban has left nothing of that, the ban does not count."""
    row.masked_fill_(~allowed, float("-inf"))
    row.copy_(torch.where(row.isneginf().all(), raw.masked_fill(~allowed, float("-inf")), row))


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """[L, V]. On a GPU rows are filled up, so that each begins at 16 bytes' multiple; torch sums others otherwise."""
    if not logits.is_cuda:
        return logits.log_softmax(-1)
    size = logits.shape[1]
    return F.pad(logits, (0, -size % 4), value=float("-inf")).log_softmax(-1)[:, :size]


def _logprobs(logits: torch.Tensor, chosen: torch.Tensor, inputs: SamplingInputs) -> list[TokenLogprobs | None]:
    results: list[TokenLogprobs | None] = [None] * len(chosen)
    if not inputs.logprob_rows:
        return results
    logprobs = _log_softmax(logits[inputs.logprob_rows])
    own = logprobs.gather(1, chosen[inputs.logprob_rows].unsqueeze(1)).squeeze(1).tolist()
    most = max(inputs.num_logprobs)
    best = logprobs.sort(dim=-1, descending=True, stable=True) if most else None
    values = best.values[:, :most].tolist() if best else [[]] * len(own)
    ids = best.indices[:, :most].tolist() if best else [[]] * len(own)
    for i, (row, count) in enumerate(zip(inputs.logprob_rows, inputs.num_logprobs, strict=True)):
        top = tuple(zip(ids[i][:count], values[i][:count], strict=True))
        results[row] = TokenLogprobs(own[i], top)
    return results
