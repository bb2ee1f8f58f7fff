"""Which rows go to which expert: pairs sorted by expert into blocks of equal size, without asking the host.

Shared experts' blocks come first: how many they are is known, so a kernel can deal them out among the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last

ONE_LAUNCH_PAIRS = 2048
"""Up to here every program counts all pairs by itself; beyond, parts of them are counted first."""
PART_PAIRS = 256


@dataclass(frozen=True, slots=True)
class Blocks:
    pairs: torch.Tensor  # [B · block size] int32: token · A + choice; what fills a block up is the number of pairs
    experts: torch.Tensor  # [B] int32: a block's expert; -1: the block is not used
    num_used: torch.Tensor  # [1] int32: so many are
    places: torch.Tensor | None = None  # [pairs] int32: where in `pairs` each one is; of `align_many` only


def max_blocks(num_pairs: int, num_experts: int, block_m: int) -> int:
    """However the pairs spread: each expert's last block may be broken, but an expert needs a pair to have one."""
    return min(num_pairs, num_pairs // block_m + num_experts)


def align(ids: torch.Tensor, num_routed: int, num_shared: int, block_m: int) -> Blocks:
    """ids [T, A] int; shared experts are appended as choices A … A + num_shared - 1 of every token."""
    num_tokens, num_chosen = ids.shape
    num_active, num_experts = num_chosen + num_shared, num_routed + num_shared
    num_pairs = num_tokens * num_active
    if num_pairs > ONE_LAUNCH_PAIRS:
        return align_many(ids, num_routed, num_shared, block_m)
    pairs, experts, num_used = _blocks(ids, num_routed, num_shared, block_m)
    _align[(num_experts + 1,)](
        ids, pairs, experts, num_used, num_pairs, len(experts), num_routed, num_experts, NUM_CHOSEN=num_chosen,
        NUM_ACTIVE=num_active, BLOCK_M=block_m, BLOCK_P=max(16, triton.next_power_of_2(num_pairs)),
        BLOCK_E=triton.next_power_of_2(num_experts + 1), BLOCK_B=triton.next_power_of_2(len(experts)),
        **chained(ids.device),
    )  # fmt: skip
    return Blocks(pairs, experts, num_used)


def align_many(ids: torch.Tensor, num_routed: int, num_shared: int, block_m: int) -> Blocks:
    """`align` in two launches, with the pairs' places."""
    num_tokens, num_chosen = ids.shape
    num_active, num_experts = num_chosen + num_shared, num_routed + num_shared
    num_pairs = num_tokens * num_active
    num_parts, block_e = triton.cdiv(num_pairs, PART_PAIRS), max(16, triton.next_power_of_2(num_experts))
    pairs, experts, num_used = _blocks(ids, num_routed, num_shared, block_m)
    places = torch.empty(num_pairs, dtype=torch.int32, device=ids.device)
    counts = torch.empty(num_parts, block_e, dtype=torch.int32, device=ids.device)
    sizes = dict(NUM_CHOSEN=num_chosen, NUM_ACTIVE=num_active, BLOCK_P=PART_PAIRS, BLOCK_E=block_e)
    numbers = num_pairs, num_routed, num_experts
    _count_part[(num_parts,)](ids, counts, *numbers, **sizes)
    _place_part[(num_parts + num_experts + 1,)](
        ids, counts, pairs, places, experts, num_used, *numbers, num_parts, len(experts), **sizes, BLOCK_M=block_m,
        BLOCK_G=64, BLOCK_O=32, num_warps=8,
    )  # fmt: skip
    return Blocks(pairs, experts, num_used, places)


def align_few(ids: torch.Tensor, num_routed: int, num_shared: int, block_m: int) -> tuple[Blocks, int, int]:
    """(blocks, their number, 0); a token alone needs no sorting: its ids and how many they are, see `rows_of_block`."""
    if len(ids) == 1:
        return Blocks(ids, ids, ids), ids.shape[1] + num_shared, ids.shape[1]
    blocks = align(ids, num_routed, num_shared, block_m)
    return blocks, len(blocks.experts), 0


def _blocks(ids: torch.Tensor, num_routed: int, num_shared: int, block_m: int) -> tuple[torch.Tensor, ...]:
    """`Blocks.pairs`, `experts` and `num_used`, not filled in. How many a shared expert has is known."""
    num_blocks = max_blocks(ids.numel(), num_routed, block_m) + num_shared * triton.cdiv(len(ids), block_m)
    sizes = num_blocks * block_m, num_blocks, 1
    return tuple(torch.empty(size, dtype=torch.int32, device=ids.device) for size in sizes)


@triton.jit
def _experts_of(
    ids, pair, num_pairs, num_routed, num_experts, NUM_CHOSEN: tl.constexpr, NUM_ACTIVE: tl.constexpr
):  # fmt: skip
    """The expert of each pair, `num_experts` of what is none."""
    choice = pair % NUM_ACTIVE
    is_chosen = (pair < num_pairs) & (choice < NUM_CHOSEN)
    chosen = tl.load(ids + pair // NUM_ACTIVE * NUM_CHOSEN + choice, mask=is_chosen, other=0).to(tl.int32)
    expert = tl.where(choice < NUM_CHOSEN, chosen, num_routed + choice - NUM_CHOSEN)
    return tl.where(pair < num_pairs, expert, num_experts)


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def _align(
    ids, pairs, block_experts, used, num_pairs, num_blocks, num_routed, num_experts, NUM_CHOSEN: tl.constexpr,
    NUM_ACTIVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_B: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One expert a program, which writes its own blocks; the last program marks the blocks that nobody uses."""
    wait_for_last(CHAINED)
    own = tl.program_id(0)
    pair = tl.arange(0, BLOCK_P)
    expert = _experts_of(ids, pair, num_pairs, num_routed, num_experts, NUM_CHOSEN, NUM_ACTIVE)
    counts = tl.histogram(expert, BLOCK_E)
    e = tl.arange(0, BLOCK_E)
    blocks = (counts + BLOCK_M - 1) // BLOCK_M
    is_shared, own_is_shared = e >= num_routed, own >= num_routed
    comes_before = tl.where(is_shared == own_is_shared, e < own, is_shared)
    first = tl.sum(tl.where((comes_before | (own == num_experts)) & (e < num_experts), blocks, 0), 0)
    b = tl.arange(0, BLOCK_B)
    if own == num_experts:
        tl.store(used, first)
        tl.store(block_experts + b, -1, mask=(b >= first) & (b < num_blocks))
    else:
        num_own = tl.sum(tl.where(e == own, blocks, 0), 0)
        count = tl.sum(tl.where(e == own, counts, 0), 0)
        tl.store(block_experts + first + b, own, mask=b < num_own)
        is_own = expert == own
        rank = tl.cumsum(is_own.to(tl.int32), 0) - 1
        tl.store(pairs + first * BLOCK_M + rank, pair, mask=is_own)
        if num_own > 0:
            last = (num_own - 1) * BLOCK_M + tl.arange(0, BLOCK_M)
            tl.store(pairs + first * BLOCK_M + last, num_pairs, mask=last >= count)


@triton.jit(do_not_specialize=["num_pairs"])
def _count_part(
    ids, counts, num_pairs, num_routed, num_experts,
    NUM_CHOSEN: tl.constexpr, NUM_ACTIVE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    pair = part * BLOCK_P + tl.arange(0, BLOCK_P)
    expert = _experts_of(ids, pair, num_pairs, num_routed, num_experts, NUM_CHOSEN, NUM_ACTIVE)
    e, is_pair = tl.arange(0, BLOCK_E), pair < num_pairs
    counted = tl.histogram(tl.where(is_pair, expert, 0), BLOCK_E)
    num_others = BLOCK_P - tl.sum(is_pair.to(tl.int32), 0)  # counted as if they were the first expert's
    tl.store(counts + part * BLOCK_E + e, counted - tl.where(e == 0, num_others, 0))


@triton.jit(do_not_specialize=["num_pairs", "num_parts", "num_blocks"])
def _place_part(
    ids, counts, pairs, places, block_experts, used, num_pairs, num_routed, num_experts, num_parts, num_blocks,
    NUM_CHOSEN: tl.constexpr, NUM_ACTIVE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """A part's pairs go behind those of the parts before it. Programs beyond the parts name each expert's blocks and
    fill up its last one; the very last marks the blocks that nobody uses.
    """
    program = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    total, before = tl.zeros((BLOCK_E,), tl.int32), tl.zeros((BLOCK_E,), tl.int32)
    for start in range(0, num_parts, BLOCK_G):
        parts = start + tl.arange(0, BLOCK_G)
        own = tl.load(counts + parts[:, None] * BLOCK_E + e[None, :], mask=(parts < num_parts)[:, None], other=0)
        total += tl.sum(own, 0)
        before += tl.sum(tl.where((parts < program)[:, None], own, 0), 0)
    blocks = tl.where(e < num_experts, (total + BLOCK_M - 1) // BLOCK_M, 0)
    is_shared = e >= num_routed
    num_shared, num_used = tl.sum(tl.where(is_shared, blocks, 0), 0), tl.sum(blocks, 0)
    firsts = tl.cumsum(blocks, 0) - blocks + tl.where(is_shared, num_shared - num_used, num_shared)
    if program < num_parts:
        pair = program * BLOCK_P + tl.arange(0, BLOCK_P)
        expert = _experts_of(ids, pair, num_pairs, num_routed, num_experts, NUM_CHOSEN, NUM_ACTIVE)
        own_first = tl.sum(tl.where(expert[:, None] == e[None, :], (firsts * BLOCK_M + before)[None, :], 0), 1)
        rank = tl.zeros((BLOCK_P,), tl.int32)  # by comparing: a running count would pass from thread to thread
        for start in range(program * BLOCK_P, (program + 1) * BLOCK_P, BLOCK_O):
            other = start + tl.arange(0, BLOCK_O)
            its_expert = _experts_of(ids, other, num_pairs, num_routed, num_experts, NUM_CHOSEN, NUM_ACTIVE)
            is_earlier = (its_expert[None, :] == expert[:, None]) & (other[None, :] < pair[:, None])
            rank += tl.sum(is_earlier.to(tl.int32), 1)
        tl.store(pairs + own_first + rank, pair, mask=pair < num_pairs)
        tl.store(places + pair, own_first + rank, mask=pair < num_pairs)
    elif program < num_parts + num_experts:
        own = program - num_parts
        first, count = tl.sum(tl.where(e == own, firsts, 0), 0), tl.sum(tl.where(e == own, total, 0), 0)
        num_own = (count + BLOCK_M - 1) // BLOCK_M
        for start in range(0, num_own, BLOCK_P):
            b = start + tl.arange(0, BLOCK_P)
            tl.store(block_experts + first + b, own, mask=b < num_own)
        last = tl.maximum(num_own - 1, 0) * BLOCK_M + tl.arange(0, BLOCK_M)
        tl.store(pairs + first * BLOCK_M + last, num_pairs, mask=(last >= count) & (last < num_own * BLOCK_M))
    else:
        tl.store(used, num_used)
        for start in range(num_used, num_blocks, BLOCK_P):
            b = start + tl.arange(0, BLOCK_P)
            tl.store(block_experts + b, -1, mask=b < num_blocks)
