"""How far a model's next-token distributions are from another's, on the same conversations.

Measured at every text token behind a picture's tokens, each model reading the true text before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from vl2.checkpoint.folder import read_model_config
from vl2.core.model_config import ModelConfig
from vl2.model.kv_pool import KVPool
from vl2.model.vl2 import DeepseekVL2
from vl2.model.weights import load_weights
from vl2.quant.calibration import Sample
from vl2.quant.job import embed_sample
from vl2.quant.layer import PAGE_SIZE, whole_prompt

POSITIONS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Distance:
    """`kl` is the mean of KL(other ‖ model) in nats; `top1` how often both have the same likeliest token, 0-1."""

    num_tokens: int
    kl: float
    top1: float


@torch.no_grad()
def compare_logits(
    folder: Path,
    other: Path,
    samples: Sequence[Sample],
    *,
    dtype: torch.dtype,
    device: torch.device,
    change: Callable[[ModelConfig], ModelConfig] = lambda config: config,
    on_sample: Callable[[], None] = lambda: None,
) -> Distance:
    """The model in `folder` against `other`, both loaded at once. `change` is done to the config of the first.

    Raises: CheckpointError.
    """
    longest = max(len(sample.prompt.token_ids) for sample in samples)
    configs = change(read_model_config(folder)), read_model_config(other)
    model, reference = (
        _load(place, config, longest, dtype, device) for place, config in zip((folder, other), configs, strict=True)
    )
    total, same, count = 0.0, 0, 0
    for sample in samples:
        hidden = [_run(one, sample) for one in (model, reference)]
        for own, true in zip(*(states.split(POSITIONS_AT_ONCE) for states in hidden), strict=True):
            logits, expected = model.decoder.logits(own), reference.decoder.logits(true)
            log_q, log_p = F.log_softmax(logits, -1), F.log_softmax(expected, -1)
            total += float((log_p.exp() * (log_p - log_q)).sum())
            same += int((logits.argmax(-1) == expected.argmax(-1)).sum())
            count += len(own)
        on_sample()
    return Distance(count, total / count, same / count)


def _load(folder: Path, config: ModelConfig, longest: int, dtype: torch.dtype, device: torch.device) -> DeepseekVL2:
    model = DeepseekVL2(config, longest, dtype=dtype, device=device)
    load_weights(model, folder)
    return model


def _run(model: DeepseekVL2, sample: Sample) -> torch.Tensor:
    """Hidden states, after the last norm, of the text tokens behind the first picture."""
    embeds = embed_sample(model, sample)
    num_pages = -(-len(embeds) // PAGE_SIZE)
    pool = KVPool(model.config.language, num_pages, PAGE_SIZE, dtype=model.dtype, device=model.device)
    hidden = model.decoder(embeds, whole_prompt(len(embeds), embeds.device), pool)
    is_text = torch.ones(len(embeds), dtype=torch.bool)
    for number, span in enumerate(sample.prompt.spans):
        is_text[0 if number == 0 else span.start : span.start + span.length] = False
    return hidden[is_text.to(hidden.device)]
