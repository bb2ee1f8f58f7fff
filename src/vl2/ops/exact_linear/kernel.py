"""x Wᵀ + b whose rows have the same bits however many there are: cuBLAS picks a kernel, and with it an order of sums,
by the number of rows; here every row is summed over K in one order, 16 products at a time.

Weights are the rows of the tensor core's product and tokens its columns, of which it takes 8 and more: so the same
instruction (on Hopper wgmma) serves one token and thousands. Tiles of other sizes then change nothing about a row.
That is tried once for each device, on sums that cancel, where another order shows in every number
(`agreeing_tiles`): tiles that differ from the first are not used.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.ops.activation import gelu_tanh
from vl2.ops.chain import chained, wait_for_last
from vl2.ops.linear import multiply_joined
from vl2.ops.saturate import saturate
from vl2.ops.tuning import num_multiprocessors

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinearTile:
    """Tokens and output columns of a program, and its step along the inner width."""

    tokens: int
    columns: int
    step: int
    num_warps: int
    num_stages: int


TILES = (
    LinearTile(64, 64, 64, 4, 4),
    LinearTile(16, 64, 128, 4, 5),
    LinearTile(32, 64, 128, 4, 4),
    LinearTile(128, 64, 64, 4, 4),
    LinearTile(128, 128, 64, 8, 4),
    LinearTile(256, 128, 64, 8, 3),
)
"""The first is the one that the others must agree with."""
FLOAT32_TILES = (LinearTile(32, 32, 32, 4, 2),)
GROUP_TILES = 8
"""Neighbouring tiles of columns that share a tile of tokens in the cache."""


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """`Backend.linear` (ops/backend.py)."""
    rows = x.flatten(0, -2)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    num_rows, out_width = len(rows), len(weight)
    out = torch.empty(num_rows, out_width, dtype=out_dtype or x.dtype, device=x.device)
    if num_rows:
        tiles = agreeing_tiles(x.device, weight.dtype)
        _launch(rows, weight, bias, out, choose_tile(tiles, num_rows, out_width, num_multiprocessors(x.device)))
    return out.view(*x.shape[:-1], out_width)


def linear_both(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`Backend.linear_both` (ops/backend.py). A column's bits do not depend on the others."""
    return multiply_joined(x, first, second, linear)


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`Backend.linear_gelu` (ops/backend.py)."""
    return gelu_tanh(saturate(linear(x, weight, bias)))


def logits(hidden: torch.Tensor, weight: torch.Tensor, is_exact: bool = True) -> torch.Tensor:
    """`Backend.logits` (ops/backend.py)."""
    return linear(hidden, weight, out_dtype=torch.float32)


def choose_tile(tiles: tuple[LinearTile, ...], num_rows: int, out_width: int, programs: int) -> LinearTile:
    """The largest that gives each of `programs` something to do, if it is not mostly empty; else the smallest."""
    smallest = min(tile.tokens for tile in tiles)
    filled = [tile for tile in tiles if tile.tokens <= max(smallest, triton.next_power_of_2(num_rows))]
    by_size = sorted(filled, key=lambda tile: -tile.tokens * tile.columns)
    return next((tile for tile in by_size if _count(tile, num_rows, out_width) >= programs), by_size[-1])


def _count(tile: LinearTile, num_rows: int, out_width: int) -> int:
    return triton.cdiv(num_rows, tile.tokens) * triton.cdiv(out_width, tile.columns)


@functools.cache
def agreeing_tiles(device: torch.device, dtype: torch.dtype) -> tuple[LinearTile, ...]:
    """Those that give the same bits as the first, found by trying."""
    if dtype == torch.float32:
        return FLOAT32_TILES
    x, weight = cancelling(300, 200, 1280, dtype, device)
    expected, *others = (torch.empty(len(x), len(weight), dtype=torch.float32, device=device) for _ in TILES)
    _launch(x, weight, None, expected, TILES[0])
    agreeing = [TILES[0]]
    for tile, out in zip(TILES[1:], others, strict=True):
        _launch(x, weight, None, out, tile)
        if torch.equal(out, expected):
            agreeing.append(tile)
        else:
            log.warning("deterministic: this GPU adds up otherwise in tiles of %s, which are not used", tile)
    return tuple(agreeing)


def cancelling(
    num_rows: int, out_width: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, weight) whose sums take away in the second half what the first gave, but for rounding and a little noise."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(rows: int) -> torch.Tensor:
        return torch.randn(rows, width // 2, generator=generator, device=device)

    order = torch.randperm(width // 2, generator=torch.Generator().manual_seed(0)).to(device)
    half, weight = draw(num_rows), draw(out_width)
    rest = -weight[:, order] * (1 + 1e-3 * draw(out_width))
    return torch.cat([half, half[:, order]], 1).to(dtype), torch.cat([weight, rest], 1).to(dtype)


def _launch(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, tile: LinearTile
) -> None:
    (num_rows, width), out_width = rows.shape, len(weight)
    _linear[(_count(tile, num_rows, out_width),)](
        rows, weight, weight if bias is None else bias, out, num_rows, width, out_width, rows.stride(0),
        HAS_BIAS=bias is not None, BLOCK_T=tile.tokens, BLOCK_N=tile.columns, BLOCK_K=tile.step, GROUP=GROUP_TILES,
        num_warps=tile.num_warps, num_stages=tile.num_stages, **chained(rows.device),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def _linear(
    x, weight, bias, out, num_rows, width, out_width, row_stride,
    HAS_BIAS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """BLOCK_T tokens at BLOCK_N output columns, transposed: acc [columns, tokens]."""
    wait_for_last(CHAINED)
    number, num_t, num_n = tl.program_id(0), tl.cdiv(num_rows, BLOCK_T), tl.cdiv(out_width, BLOCK_N)
    first = number // (GROUP * num_t) * GROUP
    size = min(num_n - first, GROUP)
    inside = number % (GROUP * num_t)
    n = (first + inside % size) * BLOCK_N + tl.arange(0, BLOCK_N)
    t = (inside // size) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_n, is_t = n < out_width, t < num_rows
    weights = weight + n.to(tl.int64)[:, None] * width
    tokens = x + t.to(tl.int64)[None, :] * row_stride
    acc = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        is_k = k < width
        w = tl.load(weights + k[None, :], mask=is_n[:, None] & is_k[None, :], other=0.0)
        rows = tl.load(tokens + k[:, None], mask=is_t[None, :] & is_k[:, None], other=0.0)
        acc = tl.dot(w, rows, acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=is_n, other=0.0).to(tl.float32)[:, None]
    at = out + t.to(tl.int64)[:, None] * out_width + n[None, :]
    tl.store(at, tl.trans(acc).to(out.dtype.element_ty), mask=is_t[:, None] & is_n[None, :])
