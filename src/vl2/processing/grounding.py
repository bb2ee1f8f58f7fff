"""Grounding tags of an answer → boxes in pixels.

An answer marks objects as `<|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2], …]<|/det|>`, with coordinates 0…999 over the
whole picture as it was sent (tiles and padding do not enter). Source: `parse_ref_bbox` of the official web demo, which
uses `eval`; here nothing is executed.
"""

from __future__ import annotations

import json
import re

from vl2.core.types import Box, GroundedObject

COORDINATE_MAX = 999
REF_PATTERN = re.compile(r"<\|ref\|>(.*?)<\|/ref\|>")  # "." stops at line breaks, as in the official code
DET_PATTERN = re.compile(r"<\|det\|>(.*?)<\|/det\|>")


def parse_grounding(text: str, width: int, height: int) -> tuple[GroundedObject, ...] | None:
    """The objects of an answer about a picture of `width` × `height` pixels; the i-th label belongs to the i-th boxes.

    Returns: None when the answer holds no objects, or anything about them is malformed. The answer's text is then all
    that there is, as in the official demo.
    """
    labels, details = REF_PATTERN.findall(text), DET_PATTERN.findall(text)
    if not labels or len(labels) != len(details):
        return None
    objects = []
    for label, detail in zip(labels, details, strict=True):
        boxes_norm = _parse_boxes(detail)
        if boxes_norm is None:
            return None
        boxes = tuple(_to_pixels(box, width, height) for box in boxes_norm)
        objects.append(GroundedObject(label, boxes, boxes_norm))
    return tuple(objects)


def _parse_boxes(detail: str) -> tuple[tuple[int, int, int, int], ...] | None:
    """ "[[1, 2, 3, 4], …]" → tuples; None when it is anything else."""
    try:
        boxes = json.loads(detail)
    except (ValueError, RecursionError):
        return None
    is_good = isinstance(boxes, list) and all(
        isinstance(box, list) and len(box) == 4 and all(type(value) is int and value >= 0 for value in box)
        for box in boxes
    )
    return tuple(map(tuple, boxes)) if is_good else None


def _to_pixels(box: tuple[int, int, int, int], width: int, height: int) -> Box:
    """Corners in order and within the picture, even where the model wrote them otherwise."""
    left, top, right, bottom = (min(value, COORDINATE_MAX) / COORDINATE_MAX for value in box)
    x1, x2 = sorted((int(left * width), int(right * width)))
    y1, y2 = sorted((int(top * height), int(bottom * height)))
    return Box(x1, y1, x2, y2)
