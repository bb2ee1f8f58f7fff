"""The engine decodes by the native library where that is there, and as before where it is not."""

from __future__ import annotations

import os

import pytest

from golden_cases import load_variant
from tests.ops.native.builds import BUILT, needs_library
from tests.parity.steps import build_engine, case_prompt, greedy
from vl2.core import cpu
from vl2.engine import native_steps
from vl2.ops.native import builds

pytestmark = pytest.mark.cpu_only


def test_where_a_build_can_run_there_is_one() -> None:
    """Else all tests of the library would be skipped, and nobody would know."""
    assert BUILT or not builds.variants() or os.environ.get("VL2_WITHOUT_NATIVE")


def golden(name: str) -> tuple[dict, dict]:
    cases = load_variant(name).cases
    return {case.name: case_prompt(case) for case in cases}, {case.name: case.greedy_tokens for case in cases}


def tokens(answers: dict[str, list]) -> dict[str, list[int]]:
    return {name: [token_id for token_id, _ in answer] for name, answer in answers.items()}


@needs_library
@pytest.mark.parametrize("name", ["mha-greedy", "mla-qlora"])
def test_generated_tokens_are_decoded_natively(name: str, monkeypatch: pytest.MonkeyPatch):
    engine, (prompts, expected) = build_engine(name, deterministic=False, threads=2), golden(name)
    steps = engine.runner.native_steps
    assert steps is not None
    sizes, run = [], steps.run
    monkeypatch.setattr(steps, "run", lambda chunks: sizes.append(len(chunks)) or run(chunks))
    monkeypatch.setattr(engine.scheduler.pacer, "prefill_tokens", lambda _: 4096)  # or it asks the clock
    monkeypatch.setattr(engine.scheduler.pacer, "tiles", lambda _: 64)
    assert tokens(greedy(engine, prompts)) == expected
    assert max(sizes) >= 4 and len(sizes) >= 14, "all but first tokens, and those beside other prompts"


@needs_library
def test_answers_are_decoded_natively_beside_prompts(monkeypatch: pytest.MonkeyPatch):
    """Prompts come in chunks, so that those that are short answer while long ones are read."""
    engine, (prompts, expected) = (
        build_engine("mha-greedy", deterministic=False, max_step_tokens=7),
        golden("mha-greedy"),
    )
    runner, by_torch = engine.runner, []
    forward = runner.model.forward
    monkeypatch.setattr(runner.model, "forward", lambda step, *rest: by_torch.append(step) or forward(step, *rest))
    assert tokens(greedy(engine, prompts)) == expected
    lengths = [chunk.length for step in by_torch for chunk in step.queries.sequences.chunks]
    assert any(not step.num_logits for step in by_torch), "chunks after which nothing is sampled"
    assert sum(lengths) == sum(len(prompt.token_ids) for prompt in prompts.values()), "torch computes prompts alone"


@needs_library
@pytest.mark.parametrize("quantization", ["int4", "int8"])
@pytest.mark.parametrize("name", ["mha-greedy", "mla-greedy"])
def test_weights_in_few_bits_are_decoded_natively_as_by_torch(
    name: str, quantization: str, monkeypatch: pytest.MonkeyPatch
):
    """The same next-token probabilities, over the answers that torch gives."""
    prompts, _ = golden(name)
    logprobs = []
    for has_library in (True, False):
        engine = build_engine(name, quantization=quantization, deterministic=False)
        if not has_library:
            engine.runner.native_steps = None
        assert (engine.runner.native_steps is not None) == has_library
        answer = greedy(engine, {"text": prompts["text"]}, logprobs=5, max_tokens=3)["text"]
        logprobs.append([value for _, found in answer for _, value in found.top])
    assert logprobs[0] == pytest.approx(logprobs[1], abs=2e-3)


@needs_library
def test_more_sequences_than_there_is_room_for_are_decoded_in_groups(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native_steps, "MAX_ROWS", 2)
    engine, (prompts, expected) = build_engine("mha-greedy", deterministic=False), golden("mha-greedy")
    assert tokens(greedy(engine, prompts)) == expected


@pytest.mark.parametrize("name", ["mha-greedy", "mla-noaux"])
def test_without_a_library_torch_decodes(name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(builds, "library_path", lambda variant: builds.FOLDER / "none.so")
    with caplog.at_level("INFO"):
        engine = build_engine(name, deterministic=False)
    assert engine.runner.native_steps is None and "without the native library: it was not built" in caplog.text
    prompts, expected = golden(name)
    assert tokens(greedy(engine, prompts)) == expected


def test_an_old_processor_has_no_build_that_it_can_run(monkeypatch: pytest.MonkeyPatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : fpu sse2 avx")
    monkeypatch.setattr(cpu, "CPUINFO", cpuinfo)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert builds.find() == (None, "this processor is too old for it")


def test_the_fastest_build_that_runs_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : " + " ".join(builds.AVX512))
    monkeypatch.setattr(cpu, "CPUINFO", cpuinfo)
    monkeypatch.setattr(builds, "FOLDER", tmp_path)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for variant in ("x86-64-v3", "x86-64-v4", "x86-64-v4-bf16"):
        (tmp_path / f"vl2-{variant}.so").touch()
    monkeypatch.setattr(builds, "load", lambda path: None)
    assert builds.find() == (tmp_path / "vl2-x86-64-v4.so", "x86-64-v4")


@pytest.mark.parametrize(("is_permitted", "expected"), [(True, "x86-64-v4-amx"), (False, "x86-64-v4-bf16")])
def test_matrix_units_are_used_where_the_system_gives_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path, is_permitted: bool, expected: str
):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : " + " ".join(builds.BFLOAT16 | builds.AMX))
    monkeypatch.setattr(cpu, "CPUINFO", cpuinfo)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(builds, "may_use_tiles", lambda: is_permitted)
    assert builds.variants()[0] == expected


def test_a_build_that_does_not_fit_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path, caplog):
    """A checkout that was updated, and not installed again; or half a file."""
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"\x7fELF")
    monkeypatch.setattr(builds, "library_path", lambda variant: broken)
    monkeypatch.setattr(builds, "variants", lambda: ["x86-64-v3"])
    path, reason = builds.find()
    assert path is None and reason.endswith("install vl2 again") and "is not used" in caplog.text


@needs_library
@pytest.mark.parametrize("name", ["mha-greedy", "mla-greedy"])
def test_in_the_deterministic_mode_groups_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch):
    """Generated tokens are always decoded natively there, also those that a preemption makes it compute again."""
    prompts, _ = golden(name)
    params = {"temperature": 1.0, "seed": 5, "logprobs": 3, "max_tokens": 12}
    together = greedy(build_engine(name, dtype="bfloat16"), prompts, **params)
    monkeypatch.setattr(native_steps, "MAX_ROWS", 2)
    engine = build_engine(name, dtype="bfloat16", threads=3)
    assert greedy(engine, dict(reversed(prompts.items())), preempt_every=3, **params) == together
    assert engine.runner.replays and engine.scheduler.counts.preemptions


@needs_library
def test_the_receipt_names_the_build(monkeypatch: pytest.MonkeyPatch):
    with_library = build_engine("mha-greedy").info.fingerprint
    monkeypatch.setattr(builds, "library_path", lambda variant: builds.FOLDER / "none.so")
    assert build_engine("mha-greedy").info.fingerprint != with_library
