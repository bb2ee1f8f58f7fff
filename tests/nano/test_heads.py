"""Training-only supervision: labels lie where the things are."""

import pytest

torch = pytest.importorskip("torch")
from config import CONFIG, initialise  # noqa: E402
from forward import POINTING_LAYERS, run  # noqa: E402
from heads import Heads, covering, middle_tokens, pointing  # noqa: E402
from pack import CHARS, NAMES, make_batch  # noqa: E402

from model import NanoVL2  # noqa: E402


def test_the_smallest_box_covers_a_cell_and_missing_boxes_cover_none():
    boxes = torch.tensor([[[0, 0, 28, 28], [0, 0, 14, 14], [0, 0, 28, 28]]], dtype=torch.float32)
    index = covering(boxes, torch.tensor([[True, True, False]]), grid=2, step=14.0)
    assert index.tolist() == [[1, 0, 0, 0]]
    assert covering(boxes, torch.zeros(1, 3, dtype=torch.bool), 2, 14.0).tolist() == [[-1] * 4]


def test_each_thing_has_one_middle_in_the_view_of_the_whole_picture():
    batch = make_batch(((1, 1),), seed=9, rows=4, sets=1)
    marks, things = middle_tokens(batch).sum(1), (batch.classes > 0).sum(1)
    assert (marks <= things).all() and marks.sum() >= 0.9 * things.sum()


def test_a_perfect_look_costs_nothing_and_a_wrong_one_much():
    batch = next(
        b for b in (make_batch(((1, 1),), seed=s, rows=1, sets=1) for s in range(40)) if (b.point[0] >= CHARS).any()
    )
    p, length = len(batch.index), batch.lengths[0]
    keys = torch.eye(p)[None]
    queries = torch.zeros(1, length, p)
    item = covering(batch.boxes, batch.classes > 0, 14, 28.0)[0] + 1
    letter = covering(batch.char_boxes, batch.chars > 0, 14, 28.0)[0] + CHARS
    for t, code in enumerate(batch.point[0][0, 1:length].tolist()):
        shown = (item == code) if 0 < code < CHARS else (letter == code) if code < NAMES else item < 0
        on = shown[batch.index.clamp_max(195)] & (batch.index < 196)
        queries[0, t] = 40.0 * on
    assert pointing(queries, keys, batch, 0, 1.0, names=False) < 1e-3
    assert pointing(-queries, keys, batch, 0, 1.0, names=False) > 10


def test_all_losses_reach_the_model():
    torch.manual_seed(0)
    model, heads = NanoVL2(CONFIG), Heads(256, 256)
    initialise(model)
    for index in POINTING_LAYERS.values():
        model.language.model["layers"][index].self_attn.probe = True
    aux = run(model, heads, make_batch(((2, 1),), seed=3, rows=2, sets=1), 0, augment=True, dtype=torch.float32).aux
    assert set(aux) == {"kind", "tint", "edge", "letter", "token", "spot", "middle", "name", "point"}
    sum(aux.values()).backward()
    assert model.vision.patch_embed.proj.weight.grad.abs().sum() > 0


def test_a_name_looks_at_all_things_of_that_name_and_colour():
    from pack import ANY_COLOUR, encode_turns, points
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
        assert points(Asked("box", "en", ((question, "none"),)), ids, answer, scene)[at + 1] == code, question


def make_batch_image():
    from PIL import Image

    return Image.new("RGB", (384, 384))
