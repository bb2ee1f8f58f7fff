"""The engine's device side on a small real model: memory runs out in the vision tower, pictures come again."""

import pytest
import torch

from golden_cases import load_variant
from tests.parity.steps import build_engine, case_prompt, greedy

VARIANT = load_variant("mla-greedy")


@pytest.mark.cpu_only  # a GPU replays graphs of the tower
def test_out_of_memory_in_the_vision_tower_halves_the_batch_and_no_request_fails(monkeypatch: pytest.MonkeyPatch):
    engine = build_engine(VARIANT.name)
    encode, tried = engine.runner.model.encode_tiles, []

    def encode_at_most_two(tiles: torch.Tensor) -> torch.Tensor:
        tried.append(len(tiles))
        if len(tiles) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 24.00 GiB")
        return encode(tiles)

    monkeypatch.setattr(engine.runner.model, "encode_tiles", encode_at_most_two)
    case = VARIANT.case("portrait")
    answers = greedy(engine, {"portrait": case_prompt(case)})
    assert [token_id for token_id, _ in answers["portrait"]] == case.greedy_tokens
    assert max(tried) > 2 and sum(count for count in tried if count <= 2) == len(case_prompt(case).tiles)


@pytest.mark.cpu_only
def test_one_tile_that_cannot_be_encoded_fails_its_request_alone(monkeypatch: pytest.MonkeyPatch):
    engine = build_engine(VARIANT.name, image_cache_tiles=10)

    def never(tiles: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner.model, "encode_tiles", never)
        with pytest.raises(AssertionError, match="out of memory"):
            greedy(engine, {"square": case_prompt(VARIANT.case("square"))})
    case = VARIANT.case("square")
    answers = greedy(engine, {"again": case_prompt(case)})
    assert [token_id for token_id, _ in answers["again"]] == case.greedy_tokens, "and its half-done tiles are forgotten"


def test_a_device_that_computes_nothing_any_more_ends_the_engine_that_another_may_take_its_place(monkeypatch):
    """Else it would take requests and fail at every one of them: nobody starts an engine again that says it is well."""
    engine, case = build_engine(VARIANT.name), VARIANT.case("text")
    error = RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail(*_):
        raise error

    monkeypatch.setattr(engine.runner, "launch", fail)
    with pytest.raises(AssertionError, match="illegal memory access"):  # the request's error
        greedy(engine, {"first": case_prompt(case)})
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    monkeypatch.setattr(engine.runner, "device", torch.device("cuda"))
    with pytest.raises(RuntimeError) as raised:
        greedy(engine, {"second": case_prompt(case)})
    assert raised.value is error


def test_a_second_question_about_a_picture_has_no_vision_work():
    engine = build_engine(VARIANT.name, prefix_cache=False)
    greedy(engine, {"first": case_prompt(VARIANT.case("landscape"))})
    encoded = engine.stats().tiles_encoded_total
    assert encoded == len(set(case_prompt(VARIANT.case("landscape")).tile_keys))
    greedy(engine, {"second": case_prompt(VARIANT.case("landscape"))})
    assert engine.stats().tiles_encoded_total == encoded


def test_a_prompt_that_was_asked_before_is_not_computed_again():
    engine = build_engine(VARIANT.name, deterministic=True)
    prompt = case_prompt(VARIANT.case("portrait"))
    first = greedy(engine, {"first": prompt}, logprobs=2)
    second = greedy(engine, {"second": prompt}, logprobs=2)
    assert second["second"] == first["first"], "to the last bit"
    page_size = engine.runner.pool.page_size
    assert engine.stats().cached_tokens_total == (len(prompt.token_ids) - 1) // page_size * page_size


def test_the_receipt_names_weights_and_number_format():
    fingerprints = {
        build_engine(VARIANT.name, dtype=dtype, deterministic=True).info.fingerprint
        for dtype in ("float32", "bfloat16")
    }
    assert len(fingerprints) == 2 and all(name.startswith("vl2-d-") for name in fingerprints)
    assert build_engine(VARIANT.name, deterministic=True).info.fingerprint in fingerprints, "the same in every process"
    assert not build_engine(VARIANT.name, deterministic=False).info.fingerprint.startswith("vl2-d-")
