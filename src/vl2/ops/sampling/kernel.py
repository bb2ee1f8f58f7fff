"""Sampling without sorting the vocabulary.

All cut-offs keep a prefix of the tokens in order of probability (equal ones by id), and the draw is a place in that
prefix. Such a place is found by bisection over the bits of a logit: how many tokens, or how much mass, lie above it?
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.chain import chained, wait_for_last
from vl2.ops.sampling.rows import SamplingRows

CHUNK = 4096


def sample(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """`Backend.sample` (ops/backend.py)."""
    num_rows, vocabulary = logits.shape
    num_chunks = triton.cdiv(vocabulary, CHUNK)
    best = torch.empty(num_rows, num_chunks, dtype=torch.float32, device=logits.device)
    best_ids = torch.empty(num_rows, num_chunks, dtype=torch.int32, device=logits.device)
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    _best_of_chunks[(num_rows, num_chunks)](
        logits, best, best_ids, vocabulary, num_chunks, CHUNK=CHUNK, **chained(logits.device)
    )
    _pick[(num_rows,)](
        logits, best, best_ids, rows.temperatures, rows.top_ks, rows.top_ps, rows.min_ps, rows.uniforms, tokens,
        vocabulary, num_chunks, CHUNK=CHUNK, BLOCK=triton.next_power_of_2(num_chunks), num_warps=8,
        **chained(logits.device),
    )  # fmt: skip
    return tokens


@triton.jit
def _best_of_chunks(logits, best, best_ids, vocabulary, num_chunks, CHUNK: tl.constexpr, CHAINED: tl.constexpr):
    wait_for_last(CHAINED)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    values = tl.load(logits + row * vocabulary + ids, mask=ids < vocabulary, other=float("-inf"))
    # Beside NaN argmax finds any lane, those beyond the vocabulary too
    values = tl.where(values > float("-inf"), values, float("-inf"))
    at = tl.argmax(values, 0, tie_break_left=True)
    tl.store(best + row * num_chunks + chunk, tl.max(values, 0))
    tl.store(best_ids + row * num_chunks + chunk, chunk * CHUNK + at)


@triton.jit
def _to_key(value):
    """Bits of a float32 as an int32 of the same order."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def _to_value(key):
    return tl.where(key >= 0, key, key ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def _above(logits, vocabulary, key, top, temperature, CHUNK: tl.constexpr):
    """(number, mass) of the tokens whose logit is greater than the key's; the best token has mass 1."""
    count, mass = tl.zeros((CHUNK,), tl.int32), tl.zeros((CHUNK,), tl.float32)
    for start in range(0, vocabulary, CHUNK):
        ids = start + tl.arange(0, CHUNK)
        values = tl.load(logits + ids, mask=ids < vocabulary, other=float("-inf"))
        is_above = (_to_key(values) > key) & (ids < vocabulary)
        count += is_above.to(tl.int32)
        mass += tl.where(is_above, tl.exp((values - top) / temperature), 0.0)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _find(logits, vocabulary, wanted_count, wanted_mass, top, temperature, CHUNK: tl.constexpr):
    """The smallest key that fewer than `wanted_count` tokens lie above, and not more than `wanted_mass`.

    So it is the key of the token at that place of the order. Returns it, and (number, mass) above it.
    """
    low, high = _to_key(tl.full((), float("-inf"), tl.float32)).to(tl.int64) - 1, _to_key(top).to(tl.int64)
    count, mass = 0, 0.0
    while high - low > 1:
        middle = (low + high) // 2
        number, weight = _above(logits, vocabulary, middle.to(tl.int32), top, temperature, CHUNK)
        if (number < wanted_count) & (weight <= wanted_mass):
            high, count, mass = middle, number, weight
        else:
            low = middle
    return high.to(tl.int32), count, mass


@triton.jit
def _nth_equal(logits, vocabulary, key, nth, CHUNK: tl.constexpr):
    """Id of the nth token (from 0) that has exactly this key, or of the last one that has it: in sums that are rounded
    there may seem to be room for more, above all among unlikely tokens."""
    found, last, passed = vocabulary, 0, 0
    for start in range(0, vocabulary, CHUNK):
        ids = start + tl.arange(0, CHUNK)
        values = tl.load(logits + ids, mask=ids < vocabulary, other=float("-inf"))
        is_equal = ((_to_key(values) == key) & (ids < vocabulary)).to(tl.int32)
        rank = passed + tl.cumsum(is_equal, 0) - 1
        found = min(found, tl.min(tl.where((is_equal == 1) & (rank == nth), ids, vocabulary), 0))
        last = max(last, tl.max(tl.where(is_equal == 1, ids, 0), 0))
        passed += tl.sum(is_equal, 0)
    return tl.where(found < vocabulary, found, last)


@triton.jit
def _pick(
    logits, best, best_ids, temperatures, top_ks, top_ps, min_ps, uniforms, tokens, vocabulary, num_chunks,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_last(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, BLOCK)
    tops = tl.load(best + row * num_chunks + chunks, mask=chunks < num_chunks, other=float("-inf"))
    top = tl.max(tops, 0)
    token = tl.load(best_ids + row * num_chunks + tl.argmax(tops, 0, tie_break_left=True))
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        own = logits + row * vocabulary
        top_k, top_p, min_p = tl.load(top_ks + row), tl.load(top_ps + row), tl.load(min_ps + row)
        least = _to_key(tl.full((), float("-inf"), tl.float32)) + 1  # key of what may be drawn
        number, mass = _above(own, vocabulary, least - 1, top, temperature, CHUNK)
        if min_p > 0:
            least = max(least, _to_key(top + temperature * tl.log(min_p)))
            number, mass = _above(own, vocabulary, least - 1, top, temperature, CHUNK)
        if (top_k > 0) & (top_k < number):
            least, number, mass = _find(own, vocabulary, top_k, float("inf"), top, temperature, CHUNK)
            mass += (top_k - number) * tl.exp((_to_value(least) - top) / temperature)
        if top_p < 1:
            wanted = top_p * mass
            key, number, above = _find(own, vocabulary, 1 << 30, wanted * (1 - 1e-7), top, temperature, CHUNK)
            each = tl.exp((_to_value(key) - top) / temperature)
            mass = min(mass, above + tl.maximum(tl.ceil((wanted - above) / each - 1e-6), 1.0) * each)
            least = max(least, key)
        target = tl.load(uniforms + row) * mass
        key, number, above = _find(own, vocabulary, 1 << 30, target, top, temperature, CHUNK)
        if key < least:  # by rounding
            key = least
            number, above = _above(own, vocabulary, key, top, temperature, CHUNK)
        nth = tl.floor((target - above) / tl.exp((_to_value(key) - top) / temperature)).to(tl.int32)
        token = _nth_equal(own, vocabulary, key, nth, CHUNK)
    tl.store(tokens + row, token.to(tl.int64))
