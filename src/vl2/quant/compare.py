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
    """`kl` is the mean of KL(other ‖ model) in nats; `top1` how often both have the same likeliest token, 0-1.

    Of all text, in which users' wording is hard to foretell, and of answers alone, which is what a model is asked for.
    """

    num_tokens: int
    kl: float
    top1: float
    num_answer_tokens: int
    answer_top1: float


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
    total, agreed, written = 0.0, list[torch.Tensor](), list[torch.Tensor]()
    for sample in samples:
        is_text = _text_of(sample)
        hidden = [_run(one, sample)[is_text.to(device)] for one in (model, reference)]
        written.append(torch.tensor(sample.writes or [False] * len(is_text))[is_text])
        for own, true in zip(*(states.split(POSITIONS_AT_ONCE) for states in hidden), strict=True):
            logits, expected = model.decoder.logits(own), reference.decoder.logits(true)
            log_q, log_p = F.log_softmax(logits, -1), F.log_softmax(expected, -1)
            total += float((log_p.exp() * (log_p - log_q)).sum())
            agreed.append((logits.argmax(-1) == expected.argmax(-1)).cpu())
        on_sample()
    same, writes = torch.cat(agreed).double(), torch.cat(written)
    count, num_written = len(same), int(writes.sum())
    return Distance(
        count, total / count, float(same.mean()), num_written, float(same[writes].mean()) if num_written else 0.0
    )


def _load(folder: Path, config: ModelConfig, longest: int, dtype: torch.dtype, device: torch.device) -> DeepseekVL2:
    model = DeepseekVL2(config, longest, dtype=dtype, device=device)
    load_weights(model, folder)
    return model


def _run(model: DeepseekVL2, sample: Sample) -> torch.Tensor:
    """Hidden states after the last norm."""
    embeds = embed_sample(model, sample)
    num_pages = -(-len(embeds) // PAGE_SIZE)
    pool = KVPool(model.config.language, num_pages, PAGE_SIZE, dtype=model.dtype, device=model.device)
    hidden: torch.Tensor = model.decoder(embeds, whole_prompt(len(embeds), embeds.device), pool)
    return hidden


def _text_of(sample: Sample) -> torch.Tensor:
    """[T] bool: text tokens behind the first picture."""
    is_text = torch.ones(len(sample.prompt.token_ids), dtype=torch.bool)
    for number, span in enumerate(sample.prompt.spans):
        is_text[0 if number == 0 else span.start : span.start + span.length] = False
    return is_text
