"""A decoding step by the native library beside the same step in torch: models of odd sizes, random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ops.native.builds import every_build, fastest, needs_library
from tests.ops.test_ops import moe_config
from vl2.core.model_config import LanguageConfig, MLAConfig
from vl2.model import packing
from vl2.model.decoder import Decoder
from vl2.model.kv_pool import KVPool
from vl2.model.moe import MoE
from vl2.model.native import NativeDecoder
from vl2.model.packing import pack_weights
from vl2.model.step import QueryRows, StepInputs
from vl2.ops import native_backend, torch_backend
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.backend import Backend
from vl2.ops.native import builds, structures
from vl2.ops.rows import RowRounding

pytestmark = [pytest.mark.cpu_only, needs_library]
PAGE_SIZE, NUM_PAGES = 4, 40
MOE = moe_config(expert_width=24, shared_width=40, first_dense_layers=1)
MHA = LanguageConfig(
    vocab_size=101,
    hidden_size=60,
    dense_width=90,
    layers=3,
    heads=6,
    kv_heads=6,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    yarn=None,
    has_attention_bias=False,
    bos_token_id=0,
    eos_token_id=1,
    mla=None,
    moe=MOE,
)
NOAUX = dataclasses.replace(
    MOE, topk_method="noaux_tc", scoring_func="sigmoid", num_groups=3, num_active_groups=2, norm_topk_prob=True
)
CONFIGS = {
    "mha": MHA,
    "grouped, with biases": dataclasses.replace(MHA, kv_heads=2, has_attention_bias=True),
    "dense": dataclasses.replace(MHA, moe=None),
    "no shared experts": dataclasses.replace(MHA, moe=dataclasses.replace(MOE, shared_width=0)),
    "even": dataclasses.replace(MHA, hidden_size=192, moe=dataclasses.replace(MOE, expert_width=64, shared_width=64)),
    "mla": dataclasses.replace(MHA, mla=MLAConfig(None, 20, 14, 6, 10)),
    "mla, query rank": dataclasses.replace(MHA, mla=MLAConfig(18, 20, 14, 6, 10), moe=NOAUX, has_attention_bias=True),
}
CONTEXTS = [1, 2, 9, 33, 100, 4, 5, 64, 17]
"""Tokens that each sequence sees with its new one."""


@dataclasses.dataclass
class Case:
    config: LanguageConfig
    decoder: Decoder
    pool: KVPool
    tables: np.ndarray
    token_ids: np.ndarray
    positions: np.ndarray

    def native(self, library: Path, threads: int = 2) -> NativeDecoder:
        return NativeDecoder(library, self.config, self.decoder, self.pool, max_rows=9, threads=threads)

    def run_torch(self) -> torch.Tensor:
        chunks = [ChunkShape(row, 1, context) for row, context in enumerate(CONTEXTS)]
        rows = QueryRows(None, AttentionBatch.of(chunks, torch.from_numpy(self.tables)))
        pages = self.tables[np.arange(len(CONTEXTS)), self.positions // PAGE_SIZE]
        ids = torch.from_numpy(self.token_ids)
        step = StepInputs(
            token_ids=ids,
            positions=torch.from_numpy(self.positions),
            kv_slots=torch.from_numpy(pages * PAGE_SIZE + self.positions % PAGE_SIZE).long(),
            queries=rows,
            last_queries=rows,
            num_logits=len(CONTEXTS),
            image_rows=ids[:0],
            image_sources=ids[:0],
            rounding=RowRounding(),
        )
        hidden = self.decoder(self.decoder.embed_tokens[ids], step, self.pool)
        return self.decoder.logits(hidden)


@torch.inference_mode()
def make(name: str, dtype: torch.dtype, like: Case | None = None, ops: Backend = torch_backend) -> Case:
    """Random weights and cache, or those of another case that is not packed."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    decoder = Decoder(config, 128, ops, dtype=dtype, device="cpu")
    for parameter_name, parameter in decoder.named_parameters():
        if parameter.dim() < 2:
            parameter.normal_(1.0 if "norm" in parameter_name else 0.0, 0.2)
        else:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    pool = KVPool(config, NUM_PAGES * len(CONTEXTS), PAGE_SIZE, dtype=dtype, device="cpu")
    for layer in pool.layers:
        layer.normal_()
    if like is not None:
        for own, other in zip(decoder.parameters(), like.decoder.parameters(), strict=True):
            own.copy_(other)
        for own, other in zip(pool.layers, like.pool.layers, strict=True):
            own.copy_(other)
    pages = torch.Generator().manual_seed(0)  # the same for all number formats
    tables = torch.randperm(NUM_PAGES * len(CONTEXTS), generator=pages).int().view(len(CONTEXTS), -1).numpy()
    token_ids, positions = np.arange(len(CONTEXTS)) * 11, np.array(CONTEXTS) - 1
    return Case(config, decoder, pool, tables, token_ids, positions)


@every_build
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_logits_and_cache_are_those_of_torch_in_float32(library: Path, name: str):
    case = make(name, torch.float32)
    got = case.native(library).run(case.token_ids, case.positions, case.tables)
    written = [layer.clone() for layer in case.pool.layers]
    expected = case.run_torch()
    assert torch.allclose(got, expected, atol=2e-4)
    for own, layer in zip(written, case.pool.layers, strict=True):
        assert torch.allclose(own, layer, atol=1e-4)


@every_build
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_in_bfloat16_it_is_as_near_to_float32_as_torch_is(library: Path, name: str):
    case = make(name, torch.bfloat16)
    exact = make(name, torch.float32, like=case).run_torch()
    pack_weights(case.decoder)
    got = case.native(library).run(case.token_ids, case.positions, case.tables)
    errors = [float((logits - exact).square().mean().sqrt()) for logits in (got, case.run_torch())]
    assert errors[0] < 1.2 * errors[1] < 0.1, "of logits of about 3"


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mha", "mla"])
def test_a_sequence_has_the_same_bits_alone_and_among_others(name: str, dtype: torch.dtype):
    case = make(name, dtype)
    pack_weights(case.decoder)
    together = case.native(fastest(), threads=3).run(case.token_ids, case.positions, case.tables)
    native = case.native(fastest(), threads=1)
    for row in range(len(CONTEXTS)):
        own = slice(row, row + 1)
        alone = native.run(case.token_ids[own], case.positions[own], case.tables[own])
        assert torch.equal(alone[0], together[row])


@torch.inference_mode()
def test_experts_in_twelve_bits_change_no_bit(monkeypatch: pytest.MonkeyPatch):
    """Neither of decoding nor of prompts."""
    if packing.shortener() is None:
        pytest.skip("this processor's build keeps 16 bits")
    monkeypatch.setattr(packing, "MOST_CACHED_BYTES", 0)
    short, whole = (make("even", torch.bfloat16, ops=native_backend) for _ in range(2))
    pack_weights(short.decoder)
    monkeypatch.setattr(packing, "shortener", lambda: None)
    pack_weights(whole.decoder)
    held = [sum(p.nbytes for p in case.decoder.parameters()) for case in (short, whole)]
    assert held[0] < held[1]
    steps = [case.native(fastest()).run(case.token_ids, case.positions, case.tables) for case in (short, whole)]
    assert torch.equal(*steps)
    assert torch.equal(short.run_torch(), whole.run_torch())


@torch.inference_mode()
def test_a_sequence_of_nan_does_not_change_those_beside_it():
    """It takes the first expert several times, so that this one's rows are as many as if they followed one another."""
    case = make("mha", torch.bfloat16)
    case.decoder.embed_tokens[case.token_ids[0]] = float("nan")
    for layer in case.decoder.layers:
        if isinstance(layer.mlp, MoE):
            layer.mlp.router[0] *= 4  # most of the others take it, too
    pack_weights(case.decoder)
    native = case.native(fastest())
    together = native.run(case.token_ids, case.positions, case.tables)
    assert together[0].isnan().all()
    assert torch.equal(native.run(case.token_ids[1:], case.positions[1:], case.tables[1:]), together[1:])


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch):
    path = fastest()
    builds.load.cache_clear()
    monkeypatch.setattr(builds, "STRUCTURES", (structures.Layer, *structures.STRUCTURES[1:]))
    with pytest.raises(OSError, match="of another version"):
        builds.load(path)
    builds.load.cache_clear()
