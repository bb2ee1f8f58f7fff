"""Each op against its definition, written the slow way in float64."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from vl2.core.model_config import MoEConfig
from vl2.ops import linear
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.attention.reference import attend_heads, attend_latent
from vl2.ops.experts.reference import routed_experts
from vl2.ops.gate.reference import route
from vl2.ops.linear import can_pack, pack
from vl2.ops.logits import project_logits
from vl2.ops.norm.reference import rms_norm
from vl2.ops.rope.reference import rotate_halves, rotate_pairs
from vl2.ops.rope.table import rope_table
from vl2.ops.rows import RowRounding, find_row_multiple, pad_rows, round_up
from vl2.ops.saturate import saturate, to_dtype
from vl2.ops.wide_product import multiply

PAGE_SIZE = 4


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def poisoned_pool(num_pages: int, *shape: int) -> torch.Tensor:
    """What no token has written is NaN, so reading it shows."""
    return torch.full((num_pages, PAGE_SIZE, *shape), float("nan"))


def fill(pool: torch.Tensor, pages: list[int], rows: torch.Tensor) -> None:
    slots = [pages[i // PAGE_SIZE] * PAGE_SIZE + i % PAGE_SIZE for i in range(len(rows))]
    pool.flatten(0, 1)[slots] = rows


def test_rms_norm_is_computed_in_float32_even_for_values_whose_square_overflows_float16():
    x = torch.full((1, 4), 300.0, dtype=torch.float16)
    assert rms_norm(x, torch.ones(4, dtype=torch.float16), 1e-6).tolist() == [[1.0] * 4]


@pytest.mark.parametrize("rotate", [rotate_halves, rotate_pairs])
def test_rope_makes_products_depend_on_the_distance_alone(rotate):
    table = rope_table(8, 3000, 10000.0, None, "cpu")
    q, k = torch.randn(1, 1, 8), torch.randn(1, 1, 8)

    def product(q_position: int, k_position: int) -> float:
        at = [rotate(x, table.rows(torch.tensor([p]))) for x, p in ((q, q_position), (k, k_position))]
        return float((at[0] * at[1]).sum())

    assert product(10, 3) == pytest.approx(product(2010, 2003), abs=1e-3)


@pytest.mark.parametrize("has_fixed_splits", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_paged_attention_of_a_mixed_step_is_causal_attention_of_each_sequence(kv_heads, has_fixed_splits):
    lengths, chunk_lengths, heads, dim = [11, 6, 4], [1, 6, 3], 4, 8  # decode, prefill, a later chunk
    pool = torch.stack([poisoned_pool(8, kv_heads, dim)] * 2)
    tables = torch.tensor([[5, 2, 7], [1, 4, 0], [3, 0, 0]], dtype=torch.int32)
    q, expected, chunks, start = [], [], [], 0
    for table, length, chunk in zip(tables.tolist(), lengths, chunk_lengths, strict=True):
        own_q, k, v = (
            torch.randn(length, heads, dim),
            torch.randn(length, kv_heads, dim),
            torch.randn(length, kv_heads, dim),
        )
        fill(pool[0], table, k)
        fill(pool[1], table, v)
        wide = [
            x.double().repeat_interleave(n, 1).transpose(0, 1)
            for x, n in ((own_q, 1), (k, 4 // kv_heads), (v, 4 // kv_heads))
        ]
        expected.append(F.scaled_dot_product_attention(*wide, is_causal=True).transpose(0, 1)[-chunk:])
        q.append(own_q[-chunk:])
        chunks.append(ChunkShape(start, chunk, length))
        start += chunk
    batch = dataclasses.replace(AttentionBatch.of(chunks, tables), has_fixed_splits=has_fixed_splits)
    out = attend_heads(torch.cat(q), pool, batch, dim**-0.5)
    torch.testing.assert_close(out.double(), torch.cat(expected), atol=1e-6, rtol=1e-5)


def test_latent_attention_is_attention_whose_value_is_the_first_part_of_its_key(monkeypatch):
    monkeypatch.setattr("vl2.ops.attention.reference.MAX_SCORES", 40)  # several blocks of query rows
    length, heads, rank, rope = 9, 3, 6, 2
    pool, pages = poisoned_pool(4, rank + rope), [3, 0, 2]
    rows = torch.randn(length, rank + rope)
    fill(pool, pages, rows)
    q = torch.randn(length, heads, rank + rope)
    table = torch.tensor([pages], dtype=torch.int32)
    out = attend_latent(q, pool, AttentionBatch.of([ChunkShape(0, length, length)], table), rank, 0.3)
    wide = rows.double().expand(heads, -1, -1)
    expected = F.scaled_dot_product_attention(
        q.double().transpose(0, 1), wide, wide[..., :rank], is_causal=True, scale=0.3
    )
    torch.testing.assert_close(out.double(), expected.transpose(0, 1), atol=1e-6, rtol=1e-5)


def moe_config(**changes) -> MoEConfig:
    plain = MoEConfig(
        num_experts=6,
        num_active=2,
        expert_width=5,
        shared_width=0,
        topk_method="greedy",
        scoring_func="softmax",
        num_groups=1,
        num_active_groups=1,
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
        first_dense_layers=0,
        layer_freq=1,
    )
    return dataclasses.replace(plain, **changes)


def test_equal_scores_go_to_the_lower_expert():
    ids, weights = route(torch.ones(3, 4), torch.ones(6, 4), None, moe_config())
    assert ids.tolist() == [[0, 1]] * 3
    assert weights.tolist() == [[pytest.approx(1 / 6)] * 2] * 3


def test_the_bias_of_noaux_tc_steers_the_choice_but_not_the_weights():
    config = moe_config(topk_method="noaux_tc", scoring_func="sigmoid")
    ids, weights = route(torch.zeros(1, 4), torch.randn(6, 4), torch.tensor([0.0, 0, 0, 0.2, 0, 0.1]), config)
    assert ids.tolist() == [[3, 5]] and weights.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("tokens", [1, 7])
def test_routed_experts_equal_the_sum_over_each_token_s_experts(tokens):
    width, inner = 8, 5
    x, gate_up, down = torch.randn(tokens, width), torch.randn(6, 2 * inner, width), torch.randn(6, width, inner)
    ids, weights = torch.stack([torch.randperm(6)[:2] for _ in range(tokens)]), torch.rand(tokens, 2)
    out = routed_experts(x, ids, weights, gate_up, down)
    for t in range(tokens):
        expected = torch.zeros(width, dtype=torch.float64)
        for expert, weight in zip(ids[t].tolist(), weights[t].double(), strict=True):
            gate, up = (gate_up[expert].double() @ x[t].double()).chunk(2)
            expected += weight * (down[expert].double() @ (F.silu(gate) * up))
        torch.testing.assert_close(out[t].double(), expected, atol=1e-4, rtol=1e-4)


def test_float16_is_kept_finite():
    assert saturate(torch.tensor([math.inf, -math.inf, 1.0], dtype=torch.float16)).tolist() == [65504.0, -65504.0, 1.0]
    assert to_dtype(torch.tensor([1e6]), torch.float16).tolist() == [65504.0]


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_the_found_multiple_a_row_has_the_same_bits_in_every_batch(dtype):
    inner, outer = 300, 130
    multiple = find_row_multiple(frozenset([(inner, outer)]), frozenset([dtype]))
    assert multiple is not None
    x, weight = torch.randn(70, inner).to(dtype), torch.randn(outer, inner).to(dtype)
    whole = F.linear(pad_rows(x, round_up(len(x), multiple)), weight)
    for count in range(1, 70):
        assert torch.equal(F.linear(pad_rows(x[:count], round_up(count, multiple)), weight)[:count], whole[:count])


def test_row_counts_take_few_sizes_and_waste_at_most_a_fourth():
    rounding = RowRounding(multiple=4, sizes_per_octave=4)
    sizes = [rounding.up(count) for count in range(1, 4097)]
    assert len(set(sizes)) < 45 and all(size % 4 == 0 for size in sizes)
    assert all(count <= size <= max(count + 3, 1.25 * count) for count, size in enumerate(sizes, start=1))


def test_the_bits_of_a_row_do_not_depend_on_how_much_of_its_chunk_comes_after_it():
    length, heads, dim = 400, 4, 32
    pool, q = torch.randn(2, 100, PAGE_SIZE, heads, dim), torch.randn(length, heads, dim)
    table = torch.randperm(100)[None].int()

    def attend(rows: torch.Tensor, end: int) -> torch.Tensor:
        batch = AttentionBatch.of([ChunkShape(0, len(rows), end)], table, row_multiple=16)
        return attend_heads(rows, pool, dataclasses.replace(batch, has_fixed_splits=True), 0.2)

    whole = attend(q, length)
    for end in (1, 63, 64, 65, 255, 256, 257, 300):
        assert torch.equal(attend(q[end - 1 : end], end)[0], whole[end - 1])


def test_logits_of_a_bfloat16_model_are_not_rounded_to_bfloat16():
    hidden, weight = torch.randn(2, 16).bfloat16(), torch.randn(9000, 16).bfloat16()
    logits = project_logits(hidden, weight)
    torch.testing.assert_close(logits.double(), hidden.double() @ weight.double().T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_where_logits_need_not_all_be_exact_the_best_of_each_row_are(rows):
    hidden, weight = torch.randn(rows, 16).bfloat16(), torch.randn(9000, 16).bfloat16()
    logits, exact = project_logits(hidden, weight, is_exact=False), hidden.double() @ weight.double().T
    best = exact.topk(20).indices
    torch.testing.assert_close(logits.gather(1, best).double(), exact.gather(1, best), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.double(), exact, atol=1e-3, rtol=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_exact", [True, False])
def test_a_step_after_which_nothing_is_sampled_has_no_logits(dtype: torch.dtype, is_exact: bool):
    """As every chunk of a long prompt but the last."""
    none, weight = torch.empty(0, 8, dtype=dtype), torch.ones(300, 8, dtype=dtype)
    assert project_logits(none, weight, is_exact).shape == (0, 300)


@pytest.mark.cpu_only
@pytest.mark.skipif(not can_pack(torch.zeros(1, dtype=torch.bfloat16)), reason="this torch or processor packs nothing")
@pytest.mark.parametrize("rows", [1, 2, 17, 100])
def test_a_packed_weight_gives_the_product_of_the_plain_one(rows):
    x, weight, bias = torch.randn(rows, 96).bfloat16(), torch.randn(80, 96).bfloat16(), torch.randn(80).bfloat16()
    packed = pack(weight)
    assert packed.shape == weight.shape and packed.dtype == weight.dtype
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(linear.multiply(x, packed).double(), exact, atol=1e-2, rtol=2**-7)
    torch.testing.assert_close(linear.multiply(x, packed, bias).double(), exact + bias, atol=3e-2, rtol=2**-7)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_wide_product_of_bfloat16_keeps_seventeen_bits(shape):
    x, y = torch.randn(*shape, 5, 64).bfloat16(), torch.randn(*shape, 64, 300).bfloat16()
    product, exact = multiply(x, y), x.double() @ y.double()
    assert product.dtype == torch.float32
    assert ((product - exact).abs() / exact.abs().clamp(0.1)).max() < 2**-16
    assert ((x @ y - exact).abs() / exact.abs().clamp(0.1)).max() > 2**-10


def test_a_row_of_a_wide_product_has_the_same_bits_in_every_batch():
    x, y = torch.randn(64, 64).bfloat16(), torch.randn(300, 64).bfloat16().T
    whole = multiply(x, y)
    for count in (2, 4, 8, 12, 32):
        assert torch.equal(multiply(x[:count], y), whole[:count])
