"""Sampling without penalties or grammars: what a CUDA graph can hold."""

from __future__ import annotations

import torch

from vl2.ops.sampling.rows import SamplingRows


def sample(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """`Backend.sample` (ops/backend.py)."""
    tokens, drawn = _likeliest(logits), rows.temperatures > 0
    if drawn.any():
        tokens[drawn] = _draw(logits[drawn], rows.take(drawn))
    return tokens


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The first of the largest; NaN is larger than all. On a CPU torch takes ten times as long as numpy."""
    if not logits.is_cpu:
        return logits.argmax(-1)
    return torch.from_numpy(logits.numpy().argmax(-1))


def _draw(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    scaled = logits.double() / rows.temperatures.unsqueeze(1)
    probs, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
    ranks, top_ks = torch.arange(probs.shape[1], device=probs.device), rows.top_ks.unsqueeze(1)
    probs = probs * ((probs >= rows.min_ps.unsqueeze(1) * probs[:, :1]) & ((ranks < top_ks) | (top_ks == 0)))
    mass = probs.cumsum(-1)
    # The smallest set of tokens whose mass reaches top_p: those before which less than top_p has been collected.
    probs = probs * (mass - probs < rows.top_ps.unsqueeze(1) * mass[:, -1:])
    mass = probs.cumsum(-1)
    picked = (mass <= rows.uniforms.unsqueeze(1) * mass[:, -1:]).sum(-1, keepdim=True)
    last = (probs > 0).sum(-1, keepdim=True) - 1
    return order.gather(1, torch.minimum(picked, last)).squeeze(1)
