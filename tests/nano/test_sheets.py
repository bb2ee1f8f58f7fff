"""Sheets teach the tower and leave the decoder alone."""

import torch
from config import CONFIG, initialise
from feed import Menu
from heads import Heads
from optim import Optimizer
from pack import LINE, WHOLE
from sheets import make_sheet, sheet_batch
from step import Trainer

from model import NanoVL2


def test_a_sheet_is_its_seed_and_shows_many_things():
    first, again = make_sheet(7), make_sheet(7)
    assert first.image.tobytes() == again.image.tobytes() and first.items == again.items
    batch = sheet_batch(7, 3, tiles=12)
    assert (batch.classes[:6] > 0).sum(1).float().mean() > 8 and (batch.chars[:6] > 0).sum() > 60
    assert not (batch.view[:6] & (WHOLE | LINE)).any() and (batch.view[6:] & WHOLE).any()
    assert all(batch.pick(r).is_sheet for r in range(3))


def test_the_time_after_the_towers_own_goes_from_0_to_1():
    menu = Menu(sets=3, many=0.5, tower=0.2, sheets=0.2)
    assert [round(menu.later(p), 3) for p in (0.0, 0.2, 0.6, 1.0)] == [0, 0, 0.5, 1]


def test_while_the_tower_learns_alone_the_decoder_stands_still():
    torch.manual_seed(0)
    model, heads = NanoVL2(CONFIG), Heads(256, 256)
    initialise(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer = Trainer(model, heads, Optimizer(model, heads), {}, record=False)
    trainer.set_rates(1.0, aux=1.0, drift=0.1, heads_only=False, tower_only=True)
    for _ in range(2):
        trainer.step(sheet_batch(3, 1, tiles=2), 0)
    after = model.state_dict()
    inner = [
        k for k in before if k.startswith("language.model.layers") and before[k].dim() >= 2 and "gate.weight" not in k
    ]
    assert all(torch.equal(before[k], after[k]) for k in inner)
    assert not torch.equal(before["vision.blocks.0.attn.qkv.weight"], after["vision.blocks.0.attn.qkv.weight"])
