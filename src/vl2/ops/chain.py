"""Kernels that begin while the one before them ends (programmatic dependent launch, from Hopper on).

A decoding step is a few hundred kernels of some microseconds, and from the last write of one to the first read of the
next about one more passes. A chained kernel is started early and waits inside, where its programs already have their
places on the card; what the model's weights are alone can be loaded before the wait.

So can what a step begins with: positions, slots, contexts. It is written by work that is not chained, which must stay
so: copies, torch's kernels, `begin_decode` (ops/step). A chained kernel begins after all such work before it, however
many others wait in between; nothing chained writes over it, as it is held until the step ends. It is read past the
first cache (`.cg`), which is not emptied until the wait.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

HOPPER = 9
"""Major compute capability."""


@functools.cache
def is_before_hopper(device: torch.device) -> bool:
    """Whether it is a GPU that can neither chain kernels nor copy tiles by itself (TMA)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < HOPPER


@functools.cache
def chained(device: torch.device) -> dict[str, bool]:
    """Launch options of a kernel that calls `wait_for_last(CHAINED)` before it reads or writes what others do; behind
    one with `wait_then_release` it may read some of it before."""
    if device.type == "cuda" and not is_before_hopper(device):
        return {"CHAINED": True, "launch_pdl": True}
    return {"CHAINED": False}


@triton.jit
def wait_for_last(CHAINED: tl.constexpr):
    """From here on all is there that earlier kernels wrote; the next kernel may take its places now."""
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def wait_then_release(CHAINED: tl.constexpr):
    """`wait_for_last`, but the next kernel starts only now: before its own wait it may read what was there before this
    one, or what programs of this one did `flush` before they released it or ended, past the first cache (`.cg`), which
    is not emptied until it waits. The next one alone: not the one after it."""
    if CHAINED:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def wait_without_release(CHAINED: tl.constexpr):
    """`wait_for_last`, but the next kernel starts later: after a `wait_then_release`, or as this program ends."""
    if CHAINED:
        gdc_wait()


@triton.jit
def flush(CHAINED: tl.constexpr):
    """What this program wrote is in the second cache before it goes on."""
    if CHAINED:
        fence: tl.constexpr = "fence.acq_rel.gpu; mov.b32 $0, 0;"
        tl.inline_asm_elementwise(fence, "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def fetch(rows, is_wanted, NUM_BYTES: tl.constexpr):
    """Have the card's cache fetch so many bytes from each wanted row of pointers [N] on; where kernels are chained.
    It takes nothing into the first cache or into registers, so it does not matter who still writes there."""
    SPAN: tl.constexpr = 64  # bytes that memory gives at once
    spans = tl.arange(0, triton.next_power_of_2(triton.cdiv(NUM_BYTES, SPAN))) * SPAN
    addresses = rows.to(tl.int64)[:, None] + spans[None, :]
    wanted = (is_wanted[:, None] & (spans < NUM_BYTES)[None, :]).to(tl.int32)
    one: tl.constexpr = """{ .reg .pred p; setp.ne.b32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0; }"""
    tl.inline_asm_elementwise(one, "=r,l,r", [addresses, wanted], dtype=tl.int32, is_pure=False, pack=1)
