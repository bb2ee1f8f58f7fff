from __future__ import annotations

import pytest

from golden_cases import read_json
from vl2.core.types import Box, GroundedObject
from vl2.processing.grounding import parse_grounding


@pytest.mark.parametrize("case", read_json("grounding.json")["cases"], ids=lambda case: case["answer"][:40])
def test_boxes_are_where_the_official_demo_draws_them(case):
    objects = parse_grounding(case["answer"], *case["image_wh"])
    drawn = objects and [
        {"label": entry.label, "box_px": [box.x1, box.y1, box.x2, box.y2]} for entry in objects for box in entry.boxes
    ]
    assert drawn == case["official_boxes"]


def test_an_object_keeps_the_models_own_coordinates():
    [found] = parse_grounding("The <|ref|>cat<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>.", 200, 100)
    assert found == GroundedObject("cat", (Box(0, 50, 200, 100),), ((0, 500, 999, 999),))


def test_swapped_corners_are_put_in_order():
    [found] = parse_grounding("<|ref|>a<|/ref|><|det|>[[900, 800, 100, 200]]<|/det|>", 999, 999)
    assert found.boxes == (Box(100, 200, 900, 800),)
    assert found.boxes_norm == ((900, 800, 100, 200),)


def test_boxes_stay_within_the_picture():
    [found] = parse_grounding(f"<|ref|>a<|/ref|><|det|>[[0, 0, 1000, {10**400}]]<|/det|>", 640, 480)
    assert found.boxes == (Box(0, 0, 640, 480),)


@pytest.mark.parametrize(
    "detail",
    [
        "",
        "null",
        "{}",
        "[]x",
        "[1, 2, 3, 4]",
        "[[1, 2, 3, 4, 5]]",
        "[[1, 2, 3, -4]]",
        "[[1, 2, 3, 4.5]]",
        "[[NaN, 2, 3, 4]]",
        "[[true, 2, 3, 4]]",
        '[["1", 2, 3, 4]]',
        "[[1, 2, 3, __import__('os').getpid()]]",
        "[" * 100_000,
    ],
    ids=lambda detail: detail[:20],
)
def test_malformed_boxes_leave_the_text_alone(detail):
    assert parse_grounding(f"<|ref|>a<|/ref|><|det|>{detail}<|/det|>", 100, 100) is None
