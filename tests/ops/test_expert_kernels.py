"""Experts as grouped GEMMs, against the reference and float64."""

import pytest
import torch

from vl2.ops.experts import align as align_module
from vl2.ops.experts import boxes, kernel, kernel_boxed, kernel_common, kernel_many, reference
from vl2.ops.experts.mixture import add_up
from vl2.ops.experts.weights import ExpertWeights

WIDTH, INNER, EXPERTS, ACTIVE = 40, 24, 6, 2


def weights_of(device: torch.device, dtype: torch.dtype, num_shared: int) -> ExpertWeights:
    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device=device) * 0.3).to(dtype)

    shared = (draw(2 * num_shared * INNER, WIDTH), draw(WIDTH, num_shared * INNER)) if num_shared else (None, None)
    return ExpertWeights(draw(EXPERTS, 2 * INNER, WIDTH), draw(EXPERTS, WIDTH, INNER), *shared)


def routes(num_tokens: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.stack([torch.randperm(EXPERTS)[:ACTIVE] for _ in range(num_tokens)]).int()
    return ids.to(device), torch.rand(num_tokens, ACTIVE, device=device)


@pytest.mark.parametrize("num_shared", [0, 1, 2])
@pytest.mark.parametrize("num_tokens", [1, 5, 33])
def test_float32_equals_the_reference(device: torch.device, num_tokens: int, num_shared: int):
    torch.manual_seed(num_tokens)
    x, experts = torch.randn(num_tokens, WIDTH, device=device), weights_of(device, torch.float32, num_shared)
    ids, weights = routes(num_tokens, device)
    torch.testing.assert_close(
        add_up(kernel.mix_experts(x, ids, weights, experts)),
        reference.mix_experts(x, ids.long(), weights, experts),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("limit", [0, align_module.ONE_LAUNCH_PAIRS])
@pytest.mark.parametrize("num_tokens", [1, 7, 50, 400])
def test_blocks_hold_every_pair_once_beside_its_own_kind(device, num_tokens: int, limit: int, monkeypatch):
    monkeypatch.setattr(align_module, "ONE_LAUNCH_PAIRS", limit)
    ids, _ = routes(num_tokens, device)
    ids[:, 0] = 3  # a popular expert, and others that nobody took
    ids[ids == 1] = 4
    blocks = align_module.align(ids, EXPERTS, 2, block_m=4)
    pairs, seen = blocks.pairs.view(-1, 4).tolist(), []
    for expert, block in zip(blocks.experts.tolist(), pairs, strict=True):
        real = [pair for pair in block if pair < num_tokens * (ACTIVE + 2)] if expert >= 0 else []
        assert (expert < 0) == (not real)
        for pair in real:
            token, choice = divmod(pair, ACTIVE + 2)
            assert expert == (ids[token, choice] if choice < ACTIVE else EXPERTS + choice - ACTIVE)
        seen += real
    assert sorted(seen) == list(range(num_tokens * (ACTIVE + 2)))


@pytest.mark.parametrize("limit", [0, align_module.ONE_LAUNCH_PAIRS])
def test_shared_experts_blocks_come_first_and_unused_ones_last(device, limit: int, monkeypatch):
    monkeypatch.setattr(align_module, "ONE_LAUNCH_PAIRS", limit)
    ids = torch.tensor([[5, 0], [5, 2], [0, 5]], dtype=torch.int32, device=device)
    blocks = align_module.align(ids, EXPERTS, 2, block_m=2)
    assert blocks.experts.tolist() == [6, 6, 7, 7, 0, 2, 5, 5] + [-1] * (len(blocks.experts) - 8)
    assert blocks.num_used.tolist() == [8]


def test_no_more_blocks_than_pairs_can_need(device: torch.device):
    """A routed expert with pairs has a broken block at most, a shared one every token's."""
    ids, _ = routes(3, device)
    assert len(align_module.align(ids, EXPERTS, 2, block_m=4).experts) == 3 * ACTIVE + 2


@pytest.mark.parametrize(("num_tokens", "num_shared"), [(1, 0), (7, 2), (400, 2)])
def test_many_pairs_know_their_places(device: torch.device, num_tokens: int, num_shared: int):
    ids, _ = routes(num_tokens, device)
    ids[:, 0], ids[ids == 1] = 3, 4
    blocks = align_module.align_many(ids, EXPERTS, num_shared, block_m=4)
    assert blocks.places is not None
    assert blocks.pairs[blocks.places.long()].tolist() == list(range(num_tokens * (ACTIVE + num_shared)))


@pytest.fixture
def memory_is_never_zero():
    """What was not written is no number. The interpreter's NumPy warns of those."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("num_shared", [0, 1, 2])
def test_more_pairs_than_are_counted_at_once_and_72_experts(device: torch.device, num_shared: int):
    """More than 64 parts of 256 pairs; a popular expert, others that nobody took."""
    ids = torch.randint(0, 72, (300, 60), generator=torch.Generator().manual_seed(0)).int().to(device)
    ids[:, 0], ids[ids == 1] = 3, 4
    blocks = align_module.align_many(ids, 72, num_shared, block_m=16)
    experts = torch.cat([ids, torch.arange(72, 72 + num_shared, device=device).expand(300, -1)], 1).flatten()
    assert blocks.places is not None
    places = blocks.places.long()
    assert blocks.pairs[places].tolist() == list(range(len(experts)))
    assert blocks.experts[places // 16].tolist() == experts.tolist()


def test_programs_without_a_tile_and_tiles_of_one_step(device: torch.device):
    torch.manual_seed(0)
    x, gate_up, down = (torch.randn(*shape, device=device).half() for shape in ((2, 16), (7, 32, 16), (7, 16, 16)))
    experts = ExpertWeights(gate_up, down, None, None)
    ids, weights = torch.full((2, 1), 6, dtype=torch.int32, device=device), torch.ones(2, 1, device=device)
    out = add_up(kernel_many.mix_many(x, ids, weights, experts, kernel_common.Tile(16, 16, 16, 16, 16, 4, 2)))
    torch.testing.assert_close(out, reference.mix_experts(x, ids.long(), weights, experts), atol=2e-2, rtol=2e-2)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.usefixtures("memory_is_never_zero")
@pytest.mark.parametrize("num_shared", [0, 2])
@pytest.mark.parametrize("num_tokens", [1, 5, 33])
def test_rows_laid_out_in_blocks_give_the_same(device: torch.device, num_tokens: int, num_shared: int):
    """Whatever fills blocks up."""
    torch.manual_seed(num_tokens)
    x = torch.randn(num_tokens, 2 * WIDTH, device=device).half()[:, :WIDTH]  # rows need not lie side by side
    experts, (ids, weights) = weights_of(device, torch.float16, num_shared), routes(num_tokens, device)
    assert boxes.can_box(x, experts.down)
    tile = kernel_common.Tile(16, 16, 16, 32, 16, 4, 2)
    out = add_up(kernel_many.mix_many(x, ids, weights, experts, tile))
    torch.testing.assert_close(out, reference.mix_experts(x, ids.long(), weights, experts), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("limit", [0, align_module.ONE_LAUNCH_PAIRS])
@pytest.mark.parametrize("num_shared", [0, 1, 2])
@pytest.mark.parametrize("num_tokens", [2, 5, 90])
def test_weights_as_boxes_give_the_same(device, num_tokens: int, num_shared: int, limit: int, monkeypatch):
    """One popular expert has several blocks, one has none; tiles reach beyond the weights' edges."""
    monkeypatch.setattr(align_module, "ONE_LAUNCH_PAIRS", limit)
    torch.manual_seed(num_tokens)
    x = torch.randn(num_tokens, 2 * WIDTH, device=device).half()[:, :WIDTH]  # rows need not lie side by side
    experts, (ids, weights) = weights_of(device, torch.float16, num_shared), routes(num_tokens, device)
    ids[:, 0], ids[:, 1] = 3, ids[:, 1].where((ids[:, 1] != 3) & (ids[:, 1] != 1), 4)
    tile = kernel_common.Tile(16, 16, 16, 32, 16, 4, 2)
    out = add_up(kernel_boxed.mix_boxed(x, ids, weights, experts, num_shared, tile))
    torch.testing.assert_close(out, reference.mix_experts(x, ids.long(), weights, experts), atol=5e-3, rtol=5e-3)


def test_a_row_does_not_depend_on_the_others(device: torch.device):
    x, experts = torch.randn(9, WIDTH, device=device), weights_of(device, torch.float32, 2)
    ids, weights = routes(9, device)
    whole = add_up(kernel.mix_experts(x, ids, weights, experts))
    for row in range(9):
        part = slice(row, row + 1)
        alone = add_up(kernel.mix_experts(x[part], ids[part], weights[part], experts))
        if device.type == "cuda":
            assert torch.equal(alone, whole[part])
        else:  # NumPy's products, which the interpreter takes, do depend on the row
            torch.testing.assert_close(alone, whole[part], atol=1e-6, rtol=1e-5)


def test_float16_stays_finite(device: torch.device):
    x, experts = torch.full((3, WIDTH), 6e4, device=device).half(), weights_of(device, torch.float16, 1)
    ids, weights = routes(3, device)
    assert bool(torch.isfinite(add_up(kernel.mix_experts(x, ids, weights * 100, experts))).all())
    assert bool(torch.isfinite(kernel_common.swiglu(torch.full((2, 16), 6e4, device=device).half())).all())


def test_swiglu(device: torch.device):
    gate_up = torch.randn(3, 5, 60, device=device)
    torch.testing.assert_close(kernel_common.swiglu(gate_up), reference.swiglu(gate_up), atol=1e-6, rtol=1e-6)
