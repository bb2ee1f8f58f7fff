"""Which rows go to which expert: pairs sorted by expert into blocks of equal size, without asking the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

ONE_LAUNCH_PAIRS = 2048
"""Up to here every program counts all pairs by itself; beyond, torch sorts them."""


@dataclass(frozen=True, slots=True)
class Blocks:
    pairs: torch.Tensor  # [B · block size] int32: token · A + choice; what fills a block up is the number of pairs
    experts: torch.Tensor  # [B] int32: a block's expert; -1: the block is not used


def max_blocks(num_pairs: int, num_experts: int, block_m: int) -> int:
    """However the pairs spread: each expert's last block may be broken, but an expert needs a pair to have one."""
    return min(num_pairs, num_pairs // block_m + num_experts)


def align(ids: torch.Tensor, num_routed: int, num_shared: int, block_m: int) -> Blocks:
    """ids [T, A] int; shared experts are appended as choices A … A + num_shared - 1 of every token."""
    num_tokens, num_chosen = ids.shape
    num_active, num_experts = num_chosen + num_shared, num_routed + num_shared
    num_pairs = num_tokens * num_active
    num_blocks = max_blocks(num_pairs, num_experts, block_m)
    if num_pairs > ONE_LAUNCH_PAIRS:
        return _align_by_sorting(ids, num_routed, num_shared, num_blocks, block_m)
    pairs = torch.empty(num_blocks * block_m, dtype=torch.int32, device=ids.device)
    experts = torch.empty(num_blocks, dtype=torch.int32, device=ids.device)
    _align[(num_experts + 1,)](
        ids, pairs, experts, num_pairs, num_blocks, num_routed, num_experts, NUM_CHOSEN=num_chosen,
        NUM_ACTIVE=num_active, BLOCK_M=block_m, BLOCK_P=max(16, triton.next_power_of_2(num_pairs)),
        BLOCK_E=triton.next_power_of_2(num_experts + 1), BLOCK_B=triton.next_power_of_2(num_blocks),
    )  # fmt: skip
    return Blocks(pairs, experts)


@triton.jit
def _align(
    ids, pairs, block_experts, num_pairs, num_blocks, num_routed, num_experts, NUM_CHOSEN: tl.constexpr,
    NUM_ACTIVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_B: tl.constexpr,
):  # fmt: skip
    """One expert a program, which writes its own blocks; the last program marks the blocks that nobody uses."""
    own = tl.program_id(0)
    pair = tl.arange(0, BLOCK_P)
    choice = pair % NUM_ACTIVE
    chosen = tl.load(
        ids + pair // NUM_ACTIVE * NUM_CHOSEN + choice, mask=(pair < num_pairs) & (choice < NUM_CHOSEN), other=0
    ).to(tl.int32)
    expert = tl.where(choice < NUM_CHOSEN, chosen, num_routed + choice - NUM_CHOSEN)
    expert = tl.where(pair < num_pairs, expert, num_experts)
    counts = tl.histogram(expert, BLOCK_E)
    e = tl.arange(0, BLOCK_E)
    blocks = (counts + BLOCK_M - 1) // BLOCK_M
    first = tl.sum(tl.where(e < own, blocks, 0), 0)
    b = tl.arange(0, BLOCK_B)
    if own == num_experts:
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


def _align_by_sorting(ids: torch.Tensor, num_routed: int, num_shared: int, num_blocks: int, block_m: int) -> Blocks:
    num_tokens, num_experts = len(ids), num_routed + num_shared
    shared = torch.arange(num_routed, num_experts, dtype=ids.dtype, device=ids.device).expand(num_tokens, -1)
    flat = torch.cat((ids, shared), 1).flatten()
    num_pairs = len(flat)
    sorted_experts, order = flat.sort(stable=True)
    every = torch.arange(num_experts, dtype=flat.dtype, device=ids.device)
    first_pair = torch.searchsorted(sorted_experts, every)
    counts = torch.searchsorted(sorted_experts, every, right=True) - first_pair
    ends = ((counts + block_m - 1) // block_m).cumsum(0)
    starts = ends - (counts + block_m - 1) // block_m
    rank = torch.arange(num_pairs, device=ids.device) - first_pair[sorted_experts]
    pairs = torch.full((num_blocks * block_m,), num_pairs, dtype=torch.int32, device=ids.device)
    pairs[starts[sorted_experts] * block_m + rank] = order.int()
    block = torch.arange(num_blocks, device=ids.device)
    owner = torch.searchsorted(ends, block, right=True)
    return Blocks(pairs, torch.where(owner < num_experts, owner, -1).int())
