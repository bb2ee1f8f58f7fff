"""Scenes: a seed is a picture, and the answers say what is in it."""

import re
from random import Random

import draw
import numpy as np
import pytest
from exam import TASKS, question
from names import ALIKE, COLOURS, HANZI, OBJECTS, SHAPES, WORDS
from PIL import ImageFont
from questions import Manner, absent, boxes_of, conversation, det, naming, which
from scenes import TRAIN_MIX, TRAIN_SEEDS, Item, make_scene, sizes_by_grid
from views import best_grid, tiles_of


def test_the_words_are_enough_and_not_mixed_up():
    assert len(OBJECTS) >= 120 and len(COLOURS) == len(SHAPES) == 8 and len(set(HANZI)) == 300
    names = {t.english for t in OBJECTS} | {t.plural for t in OBJECTS} | set(SHAPES) | set(COLOURS)
    assert not names & set(WORDS)


def test_a_seed_names_a_scene():
    first, again, other = make_scene(3), make_scene(3), make_scene(4)
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image)) and first.items == again.items
    assert first.image.size != other.image.size or not np.array_equal(np.asarray(first.image), np.asarray(other.image))


@pytest.mark.parametrize("seed", range(6))
def test_things_lie_inside_the_picture_from_left_to_right(seed):
    scene = make_scene(seed)
    w, h = scene.image.size
    assert 384 <= w <= 1500 and 384 <= h <= 1500
    assert all(0 <= i.box[0] < i.box[2] <= w and 0 <= i.box[1] < i.box[3] <= h for i in scene.items)
    middles = [i.box[0] + i.box[2] for i in scene.items]
    assert middles == sorted(middles)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_answers_match_the_scene(lang):
    scene = next(s for s in map(make_scene, range(50)) if len(s.items) >= 3 and any(i.kind == "text" for i in s.items))
    rng = Random(0)
    names = naming(scene, lang).split("、" if lang == "zh" else ", ")
    assert names == [i.name(lang == "zh") for i in scene.items]
    (_, said), *_ = question(rng, scene, "text", lang).turns
    assert said == next(i.text for i in scene.items if i.kind == "text")
    item = next(i for i in scene.items if i.kind != "text")
    boxes = boxes_of(scene, Item(item.kind, item.index, colour=item.colour))
    assert all(0 <= v <= 999 for b in boxes for v in b)
    x0 = boxes[0][0] / 999 * scene.image.width
    assert min(abs(x0 - i.box[0]) for i in scene.items) < 2


def test_an_absent_thing_is_answered_with_none():
    scene = make_scene(1)
    answers = {
        lang: {question(Random(k), scene, "absent", lang).turns[0][1] for k in range(10)} for lang in ("en", "zh")
    }
    assert answers == {"en": {"none"}, "zh": {"没有"}}


def test_absent_things_may_be_asked_for_that_look_like_one_that_is_there():
    names = [t.english for t in OBJECTS]
    assert {n for row in ALIKE for n in row} == set(names)
    scene = next(s for s in map(make_scene, range(40)) if {i.kind for i in s.items} == {"object"})
    there = {names[i.index] for i in scene.items}
    asked = [absent(Random(k), scene, alike=1.0) for k in range(20)]
    assert all(names[t.index] not in there for t in asked)
    assert sum(any(names[t.index] in row and there & set(row) for row in ALIKE) for t in asked) > 15
    assert absent(Random(3), scene) == absent(Random(3), scene, alike=0.0)


def test_crowds_are_counted_more_often_than_what_is_there_once():
    def alone(crowds: bool) -> float:
        rng, scenes = Random(1), [make_scene(1_000_000 + k, (384, 384), mix=TRAIN_MIX) for k in range(40)]
        asked = [conversation(rng, [scenes[k % 40]], Manner(crowds=crowds)) for k in range(1500)]
        answers = [a.turns[0][1] for a in asked if a and a.task == "counting"]
        return sum(answer in ("0", "1") for answer in answers) / len(answers)

    assert alone(crowds=True) < 0.7 * alone(crowds=False)


def test_a_font_can_be_drawn_more_often():
    def share(again: tuple[str, ...]) -> float:
        taken = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(draw, "_font", lambda path, size: taken.append(path.name) or ImageFont.load_default(size))
            for seed in range(400):
                draw.printed(Random(seed), "a", 30, (0, 0, 0), None, 200, again)
        return taken.count("latin-10.otf") / len(taken)

    assert share(("latin-10.otf",)) > 1.5 * share(())


def test_which_image_names_the_only_picture_that_has_it():
    scenes = [make_scene(1), make_scene(2)]
    asked = [a for a in (which(Random(k), scenes, "en") for k in range(20)) if a]
    assert {a.turns[0][1] for a in asked} <= {"image_1", "image_2"} and asked


def test_every_task_of_the_exam_is_asked():
    rng, seen = Random(0), set()
    for seed in range(12):
        scene = make_scene(seed)
        seen |= {t for t in TASKS for lang in ("en", "zh") if question(rng, scene, t, lang)}
    assert seen == set(TASKS)


def test_talk_without_a_picture_says_what_nano_can_do():
    assert "vl2-nano" in conversation(Random(0), []).turns[0][1]


def test_boxes_are_written_in_the_official_form():
    assert det([[1, 2, 30, 400], [5, 6, 7, 8]]) == "<|det|>[[1, 2, 30, 400], [5, 6, 7, 8]]<|/det|>"
    assert re.fullmatch(r"<\|det\|>\[\[\d+(, \d+){3}\]\]<\|/det\|>", det([[0, 0, 999, 999]]))


def test_the_evaluation_set_is_held_out_and_balanced():
    import json

    from evalset import FILE

    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4000
    assert all(int(re.search(r"\d+", p)[0]) < TRAIN_SEEDS for r in rows for p in r["pictures"])
    counts = [r["turns"][0][1] for r in rows if r["task"] == "counting"]
    assert set(counts) == set("123456789") and max(map(counts.count, "123456789")) < 70
    # The file is what its generator writes: its first picture still has its first answer.
    row = next(r for r in rows if r["task"] == "naming")
    scene = make_scene(int(re.search(r"\d+", row["pictures"][0])[0]))
    assert naming(scene, row["lang"]) == row["turns"][0][1]


@pytest.mark.parametrize("size", [(384, 384), (500, 400), (1500, 900), (900, 1500), (1152, 384)])
def test_tiles_are_cut_as_the_package_cuts_them(size):
    """The training tiles equal the processor's: same grid, same pixels."""
    import torch  # noqa: F401  (the package's pixel code may need it)

    from vl2.core import tiling

    scene = make_scene(5, size)
    tiles, maps, grid = tiles_of(scene.image)
    assert len(tiles) == len(maps) == (1 if grid == (1, 1) else 1 + grid[0] * grid[1])
    assert (grid == best_grid(*size) and size in sizes_by_grid()[grid]) or grid == best_grid(*size)
    assert hasattr(tiling, "__doc__")
