"""Packing: each conversation sees the picture and itself, as if it were alone."""

import pytest
import torch
from config import CONFIG, initialise
from forward import run, text_mask
from pack import LETTERS, encode_turns, make_batch, prefix_pieces
from tokenizer import build, encode

from model import NanoVL2


def test_a_packed_conversation_has_the_ids_of_the_official_prompt():
    batch = make_batch(((1, 1),), seed=1, rows=1, sets=1, keep=True)
    asked = batch.asked[0][0][0]
    (first, *_), tok = asked.turns, build()
    (head, tail) = prefix_pieces(1, labelled=False)
    official = [0, *encode(tok, "<|User|>: "), *encode(tok, "\n" + first[0] + "\n\n<|Assistant|>:")]
    ids, answer = encode_turns(asked, with_image=True)
    assert head + tail + ids[: answer.index(True)] == official
    assert ids[-1] == tok.token_to_id("<｜end▁of▁sentence｜>")
    assert batch.ids[0, 0, : len(ids)].tolist() == ids


def test_a_token_sees_the_prefix_and_earlier_tokens_of_its_own_conversation():
    mask = text_mask(torch.tensor([[1, 1, 2, 2, 0]]), prefix=3)[0, 0]
    assert mask[:, :3].all()
    assert mask[:, 3:].tolist()[1] == [True, True, False, False, False]
    assert mask[:, 3:].tolist()[3] == [False, False, True, True, False]


def test_packing_changes_no_logit():
    """The logits of a conversation are the same alone and among others."""
    torch.manual_seed(0)
    model = NanoVL2(CONFIG).eval()
    initialise(model)
    batch = make_batch(((1, 1),), seed=2, rows=1, sets=1)
    with torch.no_grad():
        packed = run(model, None, batch, 0, augment=False, dtype=torch.float32)
        second = batch.group[0, 0] == 2
        n = int(second.sum())
        alone = make_batch(((1, 1),), seed=2, rows=1, sets=1)
        for key in ("ids", "group", "place", "weight", "coord"):
            t = getattr(alone, key)
            t[0, 0, :n] = getattr(batch, key)[0, 0][second]
        alone.group[0, 0, :n], alone.group[0, 0, n:] = 1, 0
        alone.weight[0, 0, n:] = 0
        alone.targets[0] = (alone.weight[0][:, 1:] > 0).reshape(-1).nonzero()[:, 0]
        single = run(model, None, alone, 0, augment=False, dtype=torch.float32)
    torch.testing.assert_close(single.logits, packed.logits[packed.conversation == 2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("layout", "labelled"), [((), False), (((1, 1),), False), (((2, 1),), False), (((1, 1), (1, 1)), True)]
)
def test_prefix_and_text_are_as_wide_as_attention_wants_masks(layout: tuple[tuple[int, int], ...], labelled: bool):
    batch = make_batch(layout, seed=3, rows=1, sets=1, labelled=labelled)
    assert (len(batch.index) + batch.ids.shape[2]) % 16 == 0


def test_labels_follow_the_tiles():
    """Neighbouring tiles see the same box one tile side apart."""
    batch = make_batch(((2, 1),), seed=4, rows=1, sets=1)
    present = batch.classes[0] > 0
    shift = batch.boxes[1][present] - batch.boxes[2][present]
    torch.testing.assert_close(shift, torch.tensor([384.0, 0, 384, 0]).expand_as(shift))
    assert len(LETTERS) == 63 + 300
