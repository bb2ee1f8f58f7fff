"""How a decoding step begins, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vl2.ops.step.rows import DecodeRows, DecodeStart


def begin_decode(
    step: DecodeRows, kept_tables: torch.Tensor, last_tokens: torch.Tensor, embedding: torch.Tensor, page_size: int
) -> DecodeStart:
    """`Backend.begin_decode` (ops/backend.py)."""
    num, (max_pages, width) = len(step.rows), (kept_tables.shape[1], embedding.shape[1])
    embeds = torch.empty(num, width, dtype=embedding.dtype, device=embedding.device)
    positions, slots = torch.empty(2, num, dtype=torch.int64, device=embedding.device)
    tables = torch.empty(num, max_pages, dtype=torch.int32, device=embedding.device)
    _begin_decode[(num,)](
        step.rows, step.positions, step.pages, kept_tables, last_tokens, embedding, embeds, positions, slots, tables,
        page_size, max_pages, width,
        BLOCK_PAGES=triton.next_power_of_2(max_pages), BLOCK_WIDTH=triton.next_power_of_2(width),
    )  # fmt: skip
    return DecodeStart(embeds, positions, slots, tables)


@triton.jit
def _begin_decode(
    rows, step_positions, pages, kept_tables, last_tokens, embedding, embeds, positions, slots, tables,
    page_size, max_pages, width, BLOCK_PAGES: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """One sequence a program."""
    s = tl.program_id(0)
    row, position, page = tl.load(rows + s), tl.load(step_positions + s), tl.load(pages + s)
    tl.store(positions + s, position.to(tl.int64))
    tl.store(slots + s, page.to(tl.int64) * page_size + position % page_size)

    at = tl.arange(0, BLOCK_PAGES)
    kept = kept_tables + row.to(tl.int64) * max_pages
    table = tl.load(kept + at, mask=at < max_pages, other=0)
    table = tl.where(at == position // page_size, page, table)  # a store is not seen by loads of other threads
    tl.store(tables + s.to(tl.int64) * max_pages + at, table, mask=at < max_pages)
    tl.store(kept + position // page_size, page)

    column = tl.arange(0, BLOCK_WIDTH)
    token = tl.load(last_tokens + row)
    values = tl.load(embedding + token * width + column, mask=column < width)
    tl.store(embeds + s.to(tl.int64) * width + column, values, mask=column < width)
