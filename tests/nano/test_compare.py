"""`vl2 evaluate MODEL --against OTHER`: paired differences and their intervals, likeness of texts, user's files."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from vl2.cli import execute
from vl2.core.errors import SetupError
from vl2.tools.compare import Estimate, compare
from vl2.tools.evaluate import Answer, Question, read_questions
from vl2.tools.scoring import anls, edit_distance, score

BOX = "<|ref|>the cat<|/ref|><|det|>[[100, 100, 200, 200]]<|/det|>"


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("图片", "图画", 1), ("same", "same", 0)],
)
def test_edit_distance(one: str, other: str, distance: int):
    assert edit_distance(one, other) == edit_distance(other, one) == distance


def test_anls_as_defined():
    """arXiv:1905.13648: 1 - distance / longer length, nothing below a half, case ignored."""
    assert anls("Table 3", "table 3 ") == 1
    assert anls("0123456789", "0123456xyz") == pytest.approx(0.7)
    assert anls("abcd", "abxyz") == 0
    assert anls("", "") == 1


def test_an_interval_is_that_of_a_mean():
    estimate = Estimate.of([0.0, 1.0] * 50)
    assert estimate.value == 0.5
    assert estimate.margin == pytest.approx(1.959964 * math.sqrt(0.25 * 100 / 99 / 100))
    assert Estimate.of([1.0]).margin == math.inf


def answers(texts: list[str]) -> list[Answer]:
    truths = ["3", "blue", BOX, BOX]
    return [
        Answer(Question(i, (), (("?", truth),), "box" if truth is BOX else "text", "", 1), text, score(truth, text), 0)
        for i, (truth, text) in enumerate(zip(truths, texts, strict=True))
    ]


def test_differences_are_taken_question_by_question():
    near = BOX.replace("200, 200", "200, 180")
    rows = compare(answers(["3", "blu", BOX, "none"]), answers(["3", "blue", near, BOX]))
    assert [(row.task, row.num_questions, row.num_same) for row in rows] == [
        ("box", 2, 0),
        ("text", 2, 1),
        ("all", 4, 1),
    ]
    boxes, texts, _ = rows
    assert (texts.right[0].value, texts.right[1].value, texts.right[2].value) == (0.5, 1, -0.5)
    assert texts.anls is not None and texts.anls[2].value == pytest.approx(-0.25 / 2)
    assert boxes.iou is not None and boxes.iou[0].value == 0.5 and boxes.iou[2].value == pytest.approx((0.2 - 1) / 2)
    assert texts.iou is None and boxes.anls is None


def test_a_users_file_needs_only_image_question_and_answer(tmp_path: Path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"image": "a.jpg", "question": "How many?", "answer": "3"}\n')
    (question,) = read_questions(file)
    assert (question.pictures, question.turns, question.task) == (("a.jpg",), (("How many?", "3"),), "questions")
    file.write_text('{"image": "a.jpg", "question": "How many?"}\n')
    with pytest.raises(SetupError, match="line 1: not a question"):
        read_questions(file)


def test_nano_in_4_bits_against_nano(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """From the command line to the table: two engines, one after the other, and their logits."""
    Image.new("RGB", (384, 384), "navy").save(tmp_path / "a.png")
    lines = [{"image": "a.png", "question": text, "answer": "none"} for text in ("What does the text say?", "猫呢？")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = [
        "--questions",
        str(tmp_path / "q.jsonl"),
        "--pictures",
        str(tmp_path),
        "--output",
        str(tmp_path / "out.json"),
    ]
    assert execute(["evaluate", "nano", "--against", "nano", "--quantization", "int4", "--logits", "2", *words]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert [row["task"] for row in told["scores"]] == ["questions", "all"]
    assert len(told["answers"]) == 2
    logits = told["logits"]
    # 19 tokens about an empty picture: 0.52 with these weights, below 0.5 with those before.
    assert 0 < logits["kl"] < 1 and logits["top1"] > 0.5
    assert logits["num_answer_tokens"] == 2 * 2  # what follows the colon, and what follows the word
    assert 0 <= logits["answer_top1"] <= 1 and "of answers" in capsys.readouterr().out


def test_a_comparison_needs_questions(capsys: pytest.CaptureFixture[str]):
    assert execute(["evaluate", "nano", "--against", "nano", "--pictures", "."]) == 2
    assert "--questions FILE" in capsys.readouterr().err
