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
    num_active = num_chosen + num_shared
    num_pairs = num_tokens * num_active
    num_routed_pairs, num_shared_blocks = ids.numel(), num_shared * triton.cdiv(num_tokens, block_m)
    num_parts, num_shared_parts = (
        triton.cdiv(count, PART_PAIRS) for count in (num_routed_pairs, num_shared_blocks * block_m)
    )
    block_e = max(16, triton.next_power_of_2(num_routed))
    pairs, experts, num_used = _blocks(ids, num_routed, num_shared, block_m)
    places = torch.empty(num_pairs, dtype=torch.int32, device=ids.device)
    counts = torch.empty(num_parts, block_e, dtype=torch.int32, device=ids.device)
    sizes = dict(BLOCK_P=PART_PAIRS, BLOCK_E=block_e, **chained(ids.device))
    _count_part[(num_parts,)](ids, counts, num_routed_pairs, **sizes)
    _place_part[(num_shared_parts + num_parts + num_routed + 1,)](
        ids, counts, pairs, places, experts, num_used, num_tokens, num_routed, num_parts, num_shared_parts,
        num_shared_blocks, len(experts), NUM_CHOSEN=num_chosen, NUM_ACTIVE=num_active, **sizes, BLOCK_M=block_m,
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
def _count_part(ids, counts, num_pairs, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr, CHAINED: tl.constexpr):
    """How many of a part's pairs choose each expert. Shared experts are not counted: each has all tokens."""
    wait_for_last(CHAINED)
    part = tl.program_id(0)
    pair = part * BLOCK_P + tl.arange(0, BLOCK_P)
    e, is_pair = tl.arange(0, BLOCK_E), pair < num_pairs
    counted = tl.histogram(tl.load(ids + pair, mask=is_pair, other=0).to(tl.int32), BLOCK_E)
    num_others = BLOCK_P - tl.sum(is_pair.to(tl.int32), 0)  # counted as if they were the first expert's
    tl.store(counts + part * BLOCK_E + e, counted - tl.where(e == 0, num_others, 0))


@triton.jit(do_not_specialize=["num_tokens", "num_parts", "num_shared_parts", "num_shared_blocks", "num_blocks"])
def _place_part(
    ids, counts, pairs, places, block_experts, used, num_tokens, num_routed, num_parts, num_shared_parts,
    num_shared_blocks, num_blocks, NUM_CHOSEN: tl.constexpr, NUM_ACTIVE: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr, CHAINED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """The first programs write the shared experts' blocks, whose places are known. Then a part's pairs go behind those
    of the parts before it; the programs behind them name each expert's blocks and fill up its last one; the very last
    marks the blocks that nobody uses.
    """
    wait_for_last(CHAINED)
    num_pairs = num_tokens * NUM_ACTIVE
    program = tl.program_id(0) - num_shared_parts
    e = tl.arange(0, BLOCK_E)
    if program < 0:
        place = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
        num_places = tl.cdiv(num_tokens, BLOCK_M) * BLOCK_M  # of one shared expert
        shared, token = place // num_places, place % num_places
        pair = token * NUM_ACTIVE + NUM_CHOSEN + shared
        is_place, is_pair = place < num_shared_blocks * BLOCK_M, token < num_tokens
        tl.store(pairs + place, tl.where(is_pair, pair, num_pairs), mask=is_place)
        tl.store(places + pair, place, mask=is_place & is_pair)
        tl.store(block_experts + place // BLOCK_M, num_routed + shared, mask=is_place & (place % BLOCK_M == 0))
    else:
        # What is added up here is so thread by thread, and only in the end from thread to thread.
        all_counts, counts_before = tl.zeros((BLOCK_G, BLOCK_E), tl.int32), tl.zeros((BLOCK_G, BLOCK_E), tl.int32)
        for start in range(0, num_parts, BLOCK_G):
            parts = start + tl.arange(0, BLOCK_G)
            own = tl.load(counts + parts[:, None] * BLOCK_E + e[None, :], mask=(parts < num_parts)[:, None], other=0)
            all_counts += own
            counts_before += tl.where((parts < program)[:, None], own, 0)
        total, before = tl.sum(all_counts, 0), tl.sum(counts_before, 0)
        blocks = (total + BLOCK_M - 1) // BLOCK_M
        firsts = num_shared_blocks + tl.cumsum(blocks, 0) - blocks
        num_used = num_shared_blocks + tl.sum(blocks, 0)
        if program < num_parts:
            chosen = program * BLOCK_P + tl.arange(0, BLOCK_P)
            is_pair = chosen < num_tokens * NUM_CHOSEN
            expert = tl.load(ids + chosen, mask=is_pair, other=0).to(tl.int32)
            own_first = tl.sum(tl.where(expert[:, None] == e[None, :], (firsts * BLOCK_M + before)[None, :], 0), 1)
            is_earlier = tl.zeros((BLOCK_P, BLOCK_O), tl.int32)
            for first_other in tl.static_range(0, BLOCK_P, BLOCK_O):
                other = program * BLOCK_P + first_other + tl.arange(0, BLOCK_O)
                its_expert = tl.load(ids + other, mask=other < num_tokens * NUM_CHOSEN, other=-1).to(tl.int32)
                is_earlier += (its_expert[None, :] == expert[:, None]) & (other[None, :] < chosen[:, None])
            place = own_first + tl.sum(is_earlier, 1)
            pair = chosen // NUM_CHOSEN * NUM_ACTIVE + chosen % NUM_CHOSEN
            tl.store(pairs + place, pair, mask=is_pair)
            tl.store(places + pair, place, mask=is_pair)
        elif program < num_parts + num_routed:
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
