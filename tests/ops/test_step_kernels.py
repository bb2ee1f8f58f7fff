"""The beginning of a decoding step, against its reference."""

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
