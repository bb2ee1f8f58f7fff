"""The engine with weights in few bits: it answers as in 16, and repeats itself where that is asked for."""

import pytest
import torch

from tests.quant.checkpoints import NANO
from vl2.core.config import EngineConfig, ProcessorConfig
from vl2.core.types import GenerateRequest, Message, Prompt, SamplingParams
from vl2.engine.engine import Engine
from vl2.processing.processor import Processor

QUESTIONS = ("How many apples are there?", "猫在哪里？", "What does the text say? Answer in one word, please.")


def build(mode: str, **changes: object) -> Engine:
    settings = {"device": "cpu", "kv_cache_tokens": 4096, "threads": 1, "image_cache_tiles": 8, **changes}
    return Engine(NANO, EngineConfig(quantization=mode, **settings))


def prompts(engine: Engine) -> list[Prompt]:
    processor = Processor(NANO, engine.runner.model_config, ProcessorConfig())
    return [processor.process([Message("user", text)]) for text in QUESTIONS]


def answer(engine: Engine, batch: list[Prompt]) -> list[list[tuple[int, float]]]:
    """(token, logprob) of each answer, all at once."""
    for index, prompt in enumerate(batch):
        params = SamplingParams(max_tokens=6, ignore_eos=True, logprobs=0, seed=0)
        engine.add(GenerateRequest(str(index), prompt, params))
    found: list[list[tuple[int, float]]] = [[] for _ in batch]
    while engine.has_work:
        for event in engine.step():
            assert event.error is None and event.logprobs is not None
            found[int(event.request_id)].append((event.token_id, event.logprobs.logprob))
    return found


@pytest.mark.parametrize("mode", ["int4", "int8"])
def test_logprobs_are_near_those_of_16_bits(mode: str):
    exact, quantised = build("auto", dtype="float32"), build(mode, dtype="float32")
    first = [rows[0][1] for rows in answer(exact, prompts(exact))]
    other = [rows[0][1] for rows in answer(quantised, prompts(quantised))]
    torch.testing.assert_close(other, first, atol=0.5 if mode == "int4" else 0.1, rtol=0)
    assert quantised.runner.info.num_parameters == exact.runner.info.num_parameters
    assert quantised.runner.weights_bytes < 0.8 * exact.runner.weights_bytes


def test_deterministic_means_the_same_bits_alone_and_in_a_batch():
    engine = build("int4", dtype="float32", deterministic=True, prefix_cache=False)
    together = answer(engine, prompts(engine))
    alone = [answer(engine, [prompt])[0] for prompt in prompts(engine)]
    assert together == alone
    assert engine.runner.info.fingerprint.startswith("vl2-d-")


def test_without_a_wish_quantised_weights_promise_no_bits():
    fingerprints = {build(mode, dtype="float32").runner.info.fingerprint for mode in ("int4", "int8")}
    assert len(fingerprints) == 2 and not any(name.startswith("vl2-d-") for name in fingerprints)
