"""The beginning of a decoding step, against its reference."""

import pytest
import torch

from vl2.ops.step import kernel, reference
from vl2.ops.step.rows import DecodeRows


def test_a_step_finds_its_tokens_and_adds_the_pages_it_writes_to(device: torch.device):
    page_size, num_rows, max_pages, width = 4, 6, 5, 24
    tables = torch.randint(0, 90, (num_rows, max_pages), dtype=torch.int32, device=device)
    tokens, embedding = torch.randint(0, 50, (num_rows,), device=device), torch.randn(50, width, device=device)
    step = DecodeRows(
        *(torch.tensor(x, dtype=torch.int32, device=device) for x in ([4, 0, 3], [17, 4, 0], [99, 98, 97]))
    )
    ours_kept, kept = tables.clone(), tables.clone()
    ours = kernel.begin_decode(step, ours_kept, tokens, embedding, page_size)
    expected = reference.begin_decode(step, kept, tokens, embedding, page_size)
    assert torch.equal(ours_kept, kept)
    assert kept[4, 4] == 99 and kept[0, 1] == 98 and kept[3, 0] == 97
    for name in ("embeds", "positions", "slots", "block_tables"):
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name
    assert ours.slots.tolist() == [99 * 4 + 1, 98 * 4, 97 * 4]


def test_what_a_step_begins_with_is_written_by_a_kernel_that_is_not_chained(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chained ones read it before they wait (ops/chain.py): they would miss what a chained one writes."""
    launches = []
    monkeypatch.setattr(kernel, "_begin_decode", {(1,): lambda *_, **options: launches.append(set(options))})
    numbers, tables = torch.zeros(1, dtype=torch.int32, device=device), torch.zeros(1, 1, dtype=torch.int32)
    kernel.begin_decode(DecodeRows(numbers, numbers, numbers), tables, numbers.long(), torch.zeros(1, 8), 4)
    assert launches == [{"BLOCK_PAGES", "BLOCK_WIDTH"}], "neither CHAINED nor launch_pdl"
