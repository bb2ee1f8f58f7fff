"""Training-only supervision: labels lie where the things are."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attention import looked_for, middles_in_prefix, named, pointing, tally
from config import CONFIG, initialise
from forward import PROBED, run, text_mask
from gaze import ANY_COLOUR, CHARS, NAMES, SPELLED, coordinates, look, points, progress
from heads import MOST, NUM_LETTERS, Heads, amounts_told, columns, covering, middle_tokens, moved, orders
from optim import Optimizer
from pack import encode_turns, make_batch
from scenes import MIXES
from sheets import sheet_batch
from step import LOSSES, Trainer
from train import AUX

from model import NanoVL2


def test_the_smallest_box_covers_a_cell_and_missing_boxes_cover_none():
    boxes = torch.tensor([[[0, 0, 28, 28], [0, 0, 14, 14], [0, 0, 28, 28]]], dtype=torch.float32)
    index = covering(boxes, torch.tensor([[True, True, False]]), grid=2, step=14.0)
    assert index.tolist() == [[1, 0, 0, 0]]
    assert covering(boxes, torch.zeros(1, 3, dtype=torch.bool), 2, 14.0).tolist() == [[-1] * 4]


def test_a_letter_narrower_than_a_patch_is_seen_by_halves_of_patches():
    box, there = torch.tensor([[[8.0, 14, 15, 42], [15, 14, 22, 42]]]), torch.ones(1, 2, dtype=torch.bool)
    assert 0 not in columns(covering(box, there, 27, 14.0))[0]  # no patch has its middle in the first letter
    assert columns(covering(box, there, 27, 14.0, 2), 2)[0, 0].tolist() == [-1, 0, 1, -1]


def test_each_thing_has_one_middle_in_the_view_of_the_whole_picture():
    batch = make_batch(((1, 1),), seed=9, rows=4, sets=1)
    marks, things = middle_tokens(batch).sum(1), (batch.classes > 0).sum(1)
    assert (marks <= things).all() and marks.sum() >= 0.9 * things.sum()


@pytest.mark.parametrize("side", [0, 1])
def test_a_perfect_look_costs_nothing_and_a_wrong_one_much(side):
    batch = next(
        b for b in (make_batch(((1, 1),), seed=s, rows=1, sets=1) for s in range(40)) if (b.point[0] >= CHARS).any()
    )
    shown = looked_for(batch, 0, names=False, side=side)
    keys = torch.eye(len(batch.index))[None]
    queries = F.pad(40.0 * shown, (0, 0, 0, 1))
    assert shown.any() and pointing(queries, keys, shown, 1.0) < 1e-3
    assert pointing(-queries, keys, shown, 1.0) > 10


def test_a_character_is_looked_for_where_it_is_printed():
    batch = next(
        b
        for b in (make_batch(((1, 1),), seed=s, rows=1, sets=1) for s in range(60))
        if ((b.point[0] >= CHARS) & (b.point[0] < NAMES)).any()
    )
    code = batch.point[0][0, 1:]
    for t in ((code >= CHARS) & (code < NAMES)).nonzero()[:, 0].tolist():
        x0, _, x1, _ = batch.char_boxes[0, code[t] - CHARS].tolist()
        for side in (0, 1):
            tokens = batch.index[looked_for(batch, 0, names=False, side=side)[0, t]]
            left = tokens % 14 * 28 + 14 * side  # of the column of patches
            assert ((left + 14 > x0) & (left < x1)).all()


def test_things_are_numbered_from_the_left_and_counted_by_name_and_colour():
    batch = make_batch(((1, 1),), seed=9, rows=6, sets=1)
    for row, classes, tints in zip(orders(batch), batch.classes, batch.colours, strict=True):
        for k in (classes > 0).nonzero()[:, 0].tolist():
            same = classes == classes[k]
            wanted = (k, int(same[:k].sum()), int(same.sum()), int((same & (tints == tints[k])).sum()))
            assert tuple(row[k].tolist()) == tuple(map(min, wanted, (15, 11, 11, 11)))


def test_all_losses_reach_the_model():
    torch.manual_seed(0)
    model, heads = NanoVL2(CONFIG), Heads(256, 256, fine=True, amount=True)
    initialise(model)
    for index, count in PROBED.items():
        model.language.model["layers"][index].self_attn.probe = count
    aux = run(model, heads, make_batch(((2, 1),), seed=3, rows=2, sets=1), 0, augment=True, dtype=torch.float32).aux
    assert set(aux) == set(LOSSES) - {"answer"}
    sum(aux.values()).backward()
    assert model.vision.patch_embed.proj.weight.grad.abs().sum() > 0


def test_a_name_looks_at_all_things_of_that_name_and_colour():
    from questions import Asked
    from scenes import Item, Scene
    from tokenizer import build

    items = [Item("shape", 0, colour="red"), Item("object", 0), Item("shape", 0, colour="blue")]
    scene = Scene(0, make_batch_image(), items)
    tok = build()
    for question, after, code in (
        ("How many cats are there?", " cats", NAMES + ANY_COLOUR + 1),
        ("What colour is the circle?", " circle", NAMES + ANY_COLOUR),
        ("<|ref|>the blue circle<|/ref|>.", " circle", NAMES + 2),
        ("<|ref|>蓝色圆形<|/ref|>。", "形", NAMES + 2),
        ("<|ref|>the green circle<|/ref|>.", " circle", 0),
    ):
        ids, answer = encode_turns(Asked("box", "en", ((question, "none"),)), with_image=True)
        at = ids.index(tok.encode(after, add_special_tokens=False).ids[0])
        assert points(((question, "none"),), ids, answer, coordinates(ids, answer), look(scene))[at + 1] == code, (
            question
        )


def test_a_count_said_aloud_looks_at_one_thing_after_the_other():
    from questions import Asked
    from scenes import Item, Scene

    cat, red, blue = Item("object", 0), Item("shape", 0, colour="red"), Item("shape", 0, colour="blue")
    scene = Scene(0, make_batch_image(), [cat, red, blue, cat, red])
    for question, said, wanted in (  # codes of a number, of what separates it from the next, … and of the end
        ("How many cats are there?", "1, 2", [1, 4, 4, 0]),
        ("有几个红色圆形？", "1、2", [2, 5, 5, 0]),
        ("How many circles are there?", "1, 2, 3", [2, 3, 3, 5, 5, 0]),
        ("How many blue circles are there?", "1", [3, 0]),
        ("How many circles are there?", "3", [0, 0]),
        ("How many dogs are there?", "0", [0, 0]),
    ):
        asked = Asked("counting", "en", ((question, said),))
        ids, answer = encode_turns(asked, with_image=True)
        codes = points(asked.turns, ids, answer, coordinates(ids, answer), look(scene))
        assert codes[answer.index(True) :] == wanted, question


def make_batch_image():
    from PIL import Image

    return Image.new("RGB", (384, 384))


@pytest.mark.parametrize("grid", [(1, 1), (2, 1), (3, 2)])
def test_middles_lie_in_the_prefix_where_the_layout_says(grid):
    batch = make_batch((grid,), seed=4, rows=3, sets=1)
    whole, local = middles_in_prefix(batch)
    index, tiles = batch.index, batch.tiles.shape[0] // 3
    for row in range(3):
        boxes = batch.boxes.view(3, tiles, -1, 4)[row]
        for k in (batch.classes.view(3, tiles, -1)[row, 0] > 0).nonzero()[:, 0].tolist():
            for place in (whole[row, k], local[row, k]):
                tile, token = divmod(int(index[place]), 196)
                x, y = (boxes[tile, k, :2] + boxes[tile, k, 2:]) / 2
                assert 28 * (token % 14) <= x <= 28 * (token % 14 + 1) and 28 * (token // 14) <= y <= 28 * (
                    token // 14 + 1
                )
            assert tile == 0 if tiles == 1 else tile > 0


@pytest.mark.parametrize("per_thing", [0.125, 0.25])
def test_a_head_that_counts_costs_nothing_and_one_thing_too_many_costs_a_share(per_thing):
    batch = next(
        b for b in (make_batch(((2, 1),), seed=s, rows=1, sets=1) for s in range(40)) if named(b, 0).sum(-1).max() > 3
    )
    counted, (whole, _), p = named(batch, 0), middles_in_prefix(batch), len(batch.index)
    mask = text_mask(batch.group[0].long(), p)[:, 0]
    wanted = torch.full((1, counted.shape[1] + 1, mask.shape[-1]), 1e-9)
    wanted[..., 0] = 1
    wanted[:, :-1].scatter_add_(2, whole[:, None].expand(-1, counted.shape[1], -1), per_thing * counted)
    keys = torch.eye(mask.shape[-1])[None]
    away, off = tally(wanted.log(), keys, mask, counted, whole, 1.0, per_thing)
    assert abs(away) < 1e-4 and off < 1e-4
    away, off = tally(torch.zeros_like(wanted), keys, mask, counted, whole, 1.0, per_thing)
    assert away > 1 and off > 1
    wanted[..., 5] = per_thing  # a thing that is none
    away_more, off_more = tally(wanted.log(), keys, mask, counted, whole, 1.0, per_thing)
    assert 0 < away_more < 0.3 and 0.02 < off_more < 0.6


def test_image_tokens_say_the_characters_of_all_their_columns():
    torch.manual_seed(0)
    heads = Heads(256, 256, fine=True)
    x = torch.randn(2, 400, 256)
    letter = torch.full((2, 400, 4), -100)
    letter[:, 50:350] = 0
    letter[:, 60:70] = torch.tensor([5, 5, 6, 7])
    with torch.no_grad():
        heads.spelled.weight.zero_()
        heads.spelled.bias.zero_()
        assert abs(heads.spelling(x, letter) - torch.tensor(float(NUM_LETTERS)).log()) < 1e-3
        heads.spelled.bias.view(4, -1)[range(4), [5, 5, 6, 7]] = 20.0  # right where there are characters
        heads.letter_weight[0] = 0.0
        assert heads.spelling(x, letter) < 1e-3


def test_a_number_of_equal_things_weighs_as_much_as_it_is():
    """A patch of a single thing and one of eight: a wrong "8" costs eight times as much; what shows nothing is free."""
    truth, valid = torch.tensor([[[1], [8], [3]]]), torch.tensor([[True, True, False]])
    right = F.one_hot(truth[..., 0], MOST) * 50.0
    assert amounts_told(right, truth, valid) < 1e-3
    losses = []
    for place in range(3):
        wrong = right.clone()
        wrong[0, place] = right[0, place].roll(1)
        losses.append(float(amounts_told(wrong, truth, valid)))
    assert losses == pytest.approx([50 / 9, 8 * 50 / 9, 0], abs=1e-3)


def test_how_much_of_a_list_or_a_text_was_said_is_counted_at_each_token():
    from questions import Asked
    from scenes import Item, Scene

    red, cat = Item("shape", 0, colour="red"), Item("object", 0)
    scene = Scene(0, make_batch_image(), [cat, cat, red, Item("text", text="A7")])
    asked = Asked("naming", "en", (("What do you see?", "cat, cat, red circle, text"), ("Read the text.", "A7")))
    ids, answer = encode_turns(asked, with_image=True)
    said = progress(asked.turns, ids, answer, look(scene))
    first = answer.index(True)
    #                              cat ,  cat ,  red circle ,  text EOS
    assert said[first : first + 9] == [0, 1, 1, 2, 2, 2, 3, 3, 4]
    assert [s for s in said[first + 9 :] if s >= 0] == [SPELLED, SPELLED + 1, SPELLED + 2]
    assert all(s < 0 for s, is_answer in zip(said, answer, strict=True) if not is_answer)


def test_gradients_of_every_kind_of_micro_batch_are_finite_and_its_shapes_do_not_vary():
    """On the GPU the step of a layout is recorded once, so other scenes must have the same shapes."""
    torch.manual_seed(0)
    model, heads = NanoVL2(CONFIG), Heads(256, 256, 0.25, fine=True, amount=True)
    initialise(model)
    trainer = Trainer(model, heads, Optimizer(model, heads), AUX | {"amount": 0.25}, record=False)
    trainer.set_rates(1.0, aux=1.0, drift=0.1, heads_only=False, tower_only=False)
    for grids in (((1, 1),), ((2, 1),), ((1, 1), (1, 1))):
        one, two = (make_batch(grids, seed, rows=1, sets=1, mix=MIXES["fonts"]) for seed in (3, 9))
        assert [t.shape for t in one.pick(0).tensors()] == [t.shape for t in two.pick(0).tensors()]
        trainer.losses(two, 0)
    losses = trainer.read_losses()
    assert set(AUX) < set(losses) and all(0 <= v < 100 for v in losses.values())
    assert min(losses[k] for k in ("tally", "share", "number", "said", "token_letter", "amount")) > 0
    assert all(w.grad.isfinite().all() for w, _ in trainer.trained)
    assert heads.said.weight.grad.abs().sum() > 0


def test_labels_move_with_the_pixels():
    torch.manual_seed(0)
    batch = sheet_batch(5, 1, tiles=8)
    tiles = torch.zeros_like(batch.tiles)
    boxes = batch.boxes.clone()
    for t in range(4):  # sheets, which may move
        boxes[t, 0] = torch.tensor([100, 140, 180, 200])
        tiles[t, 140:200, 100:180] = 255
    after = moved(replace(batch, tiles=tiles, boxes=boxes))
    for t in range(4):
        lit = (after.tiles[t].mean(0) - after.tiles[t].mean(0).min() > 1).nonzero()
        (y0, x0), (y1, x1) = lit.min(0).values, lit.max(0).values + 1
        got = torch.stack((x0, y0, x1, y1)).float()
        assert (got - after.boxes[t, 0]).abs().max() < 2 and (got - boxes[t, 0]).abs().max() > 2
