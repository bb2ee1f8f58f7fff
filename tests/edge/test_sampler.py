"""The sampler in numpy chooses what the sampler in torch chooses, with every parameter, and tells the same logprobs."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.engine.builders import sequence, text_prompt
from vl2.engine import onnx_sampler, sampler
from vl2.engine.batch import sampling_inputs
from vl2.engine.scheduler import Chunk, StepBatch
from vl2.ops import torch_backend

V = 50


def both(logits: np.ndarray, seq) -> tuple[tuple, tuple]:
    output = sampler.choose(
        torch_backend,
        torch.from_numpy(logits)[None],
        sampling_inputs(StepBatch([Chunk.of(seq, 0, len(seq.token_ids))], []), torch.device("cpu")),
    )
    return (output.token_ids[0], output.logprobs[0]), onnx_sampler.choose(logits, seq)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.8},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "min_p": 0.2, "top_p": 0.9, "top_k": 20},
        {"repetition_penalty": 1.3, "temperature": 1.0},
        {"presence_penalty": 0.5, "frequency_penalty": 0.3, "temperature": 1.0},
        {"logit_bias": {3: 4.0, 9: -100.0}},
        {"no_repeat_ngram_size": 2},
        {"logprobs": 3, "temperature": 1.0, "logit_bias": {1: 2.0}},
    ],
    ids=str,
)
def test_it_chooses_as_torch_does(params: dict) -> None:
    dice = np.random.default_rng(0)
    seq = sequence(text_prompt(6), seed=5, **params)
    for _ in range(40):
        logits = (3 * dice.standard_normal(V)).astype(np.float32)
        (token_id, logprobs), (ours, our_logprobs) = both(logits, seq)
        assert ours == token_id
        if logprobs is not None:
            assert our_logprobs.logprob == pytest.approx(logprobs.logprob, abs=1e-5)
            assert [token for token, _ in our_logprobs.top] == [token for token, _ in logprobs.top]
        seq.expect()
        seq.resolve(len(seq.token_ids) - 1, token_id, eos_token_id=V + 1)


def test_a_grammar_s_mask_comes_before_a_ban() -> None:
    seq = sequence(text_prompt(2), logit_bias={7: -100.0})
    for allowed_ids in ([4, 7], [7]):
        mask = np.zeros(V, bool)
        mask[allowed_ids] = True
        ready: Future[np.ndarray] = Future()
        ready.set_result(mask)
        seq.constraint = SimpleNamespace(next_mask=ready)
        logits = np.zeros(V, np.float32)
        logits[[7, 4]] = 9.0, 1.0
        (token_id, _), (ours, _) = both(logits, seq)
        assert ours == token_id == allowed_ids[0]
