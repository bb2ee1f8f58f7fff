"""Tiles by GPU: where they come from, how the fastest are found and kept."""

import json
from dataclasses import dataclass

import pytest
import torch

from tests.ops.test_ops import moe_config
from vl2.core.errors import SetupError
from vl2.core.model_config import LanguageConfig, MLAConfig
from vl2.ops import tuning
from vl2.ops.attention import kernel as attention
from vl2.ops.tune import Case, Load, model_cases, tune


@dataclass(frozen=True)
class Tile:
    width: int
    depth: int = 1


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU that nobody has measured, and a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Z9 (test)")
    monkeypatch.setattr(tuning, "_shared_memory_bytes", lambda: 227 * 1024)
    tuning.of_this_gpu.cache_clear()
    yield "NVIDIA Z9 (test)"
    tuning.of_this_gpu.cache_clear()


def test_an_unknown_gpu_takes_the_shipped_tiles_and_the_log_names_the_command(gpu, caplog):
    caplog.set_level("INFO")
    for _ in range(2):
        assert tuning.tuned("prefill_heads", attention.Tile) == attention.TILES["prefill_heads"]
    [record] = caplog.records
    assert "vl2 tune" in record.message and gpu in record.message


@pytest.mark.parametrize(("kilobytes", "is_small"), [(227, False), (163, True), (99, True), (64, True)])
def test_a_gpu_with_little_shared_memory_takes_tiles_that_fit(gpu, monkeypatch, kilobytes: int, is_small: bool):
    monkeypatch.setattr(tuning, "_shared_memory_bytes", lambda: kilobytes * 1024)
    tile = tuning.tuned("decode_latent", attention.Tile)
    assert tile.block_n == (32 if is_small else 64)


def test_all_shipped_files_have_tiles_of_the_same_kernels():
    [first, *others] = [file.tiles.keys() for file in tuning._all_shipped()]
    assert others and all(names == first for names in others)


def test_what_was_measured_is_kept_and_goes_first_kernel_by_kernel(gpu):
    path = tuning.save(gpu, {"one": Tile(4)})
    tuning.save(gpu, {"other": Tile(8, depth=3)})
    assert path.name == "nvidia-z9-test.json"
    assert tuning.tuned("one", Tile) == Tile(4) and tuning.tuned("other", Tile) == Tile(8, 3)
    assert tuning.tuned("decode_heads", attention.Tile) == attention.TILES["decode_heads"], "the shipped one"


@pytest.mark.parametrize("text", ["{", '{"gpu": "x"}', json.dumps({"gpu": "x", "tiles": {"one": {"hight": 1}}})])
def test_a_file_that_does_not_fit_is_an_error_that_says_what_to_do(gpu, text: str):
    path = tuning.user_file(gpu)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(SetupError, match="vl2 tune"):
        tuning.tuned("one", Tile)


def test_the_tile_with_the_best_mean_over_all_loads_wins():
    seconds = {1: [4.0, 1.0], 2: [1.0, 1.1], 3: [0.5, 9.0]}  # by width: with few rows, with many

    def works(tile: Tile) -> list:
        return [lambda time=time: time for time in seconds[tile.width]]

    def timer(work) -> float:  # a work tells how long it takes
        return work()

    [finding] = tune(iter([Case("one", Tile(1), [{"width": 2}, {"width": 3}], works)]), timer)
    assert finding.tile == Tile(2)
    assert finding.speedup == pytest.approx((4.0 / 1.1) ** 0.5)


@pytest.mark.parametrize("is_mla", [False, True])
def test_every_kernel_of_a_model_can_be_run_with_its_own_tile(is_mla: bool):
    language = LanguageConfig(
        vocab_size=100, hidden_size=32, dense_width=32, layers=2, heads=2, kv_heads=2, max_position_embeddings=64,
        rms_norm_eps=1e-6, rope_theta=10000.0, yarn=None, has_attention_bias=False, bos_token_id=0, eos_token_id=1,
        mla=MLAConfig(None, 32, 16, 16, 16) if is_mla else None,
        moe=moe_config(num_experts=4, num_active=2, expert_width=16, shared_width=16),
    )  # fmt: skip
    load = Load(batches=(1, 2, 4), many=5, context_tokens=16, prompt_tokens=32, chunk_tokens=2)
    ran, tiles = [], dict(attention.TILES)

    def timer(work) -> float:
        work()
        ran.append(work)
        return 1.0

    device = torch.device("cpu")  # in the interpreter
    cases = [
        Case(case.kernel, case.usual, [], case.works) for case in model_cases(language, device, torch.float16, load)
    ]
    findings = list(tune(iter(cases), timer))
    latent = ["decode_latent_one", "decode_latent", "decode_latent_many", "prefill_latent", "prefill_expanded"]
    kernels = latent if is_mla else ["decode_heads", "prefill_heads"]
    experts = ["experts_few", "experts_several", "experts_some", "experts_sorted", "experts_many"]
    assert [finding.kernel for finding in findings] == kernels + experts
    assert len(ran) > len(findings) and tiles == attention.TILES
