"""`vl2 evaluate`: questions go through the API with their pictures; scores are what the answers deserve."""

import asyncio
import json

import httpx
import pytest

from vl2.core.errors import SetupError
from vl2.tools.evaluate import Answer, Question, evaluate, read_questions, summarise
from vl2.tools.scoring import Names, match_boxes, score

BOX = "<|ref|>the cat<|/ref|><|det|>[[100, 100, 200, 200]]<|/det|>"


def test_text_must_be_exact_but_for_outer_space():
    assert score("cat, dog", "cat, dog ").right == 1 and score("cat, dog", "dog, cat").right == 0


def test_of_a_list_that_is_wrong_as_a_whole_its_names_are_counted():
    assert score("cat, dog, dog", "dog, cat, bird, dog").names == Names(expected=3, answered=4, shared=3)
    assert score("猫、狗、狗", "狗").names == Names(expected=3, answered=1, shared=1)
    assert score(BOX, "none").names is None


@pytest.mark.parametrize("answer", ["3", "1, 2, 3", "1、2、3\n"])
def test_a_number_may_be_said_at_once_or_aloud(answer):
    assert score("3", answer).right == 1
    assert score("2", answer).right == 0


@pytest.mark.parametrize("answer", ["1, 3", "1, 1, 3", "2, 3", "1, 2, 3, 4", "1, 2", "3 cats", ""])
def test_a_count_aloud_leaves_nothing_out(answer):
    assert score("3", answer).right == 0


def test_a_box_counts_from_half_overlap_and_under_its_own_name_only():
    near = BOX.replace("200, 200", "190, 195")
    assert score(BOX, near).right == 1 and 0.8 < score(BOX, near).ious[0] < 0.9
    assert score(BOX, near.replace("cat", "dog")).right == 0
    assert score(BOX, "none").ious == (0.0,)


def test_one_answered_box_serves_one_expected_box():
    assert sorted(match_boxes([(0, 0, 9, 9), (0, 0, 9, 9)], [(0, 0, 9, 9)])) == [0.0, 1.0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    rows = [
        {"id": 0, "pictures": ["a.png"], "task": "counting", "lang": "en", "tiles": 1, "turns": [["How many?", "3"]]},
        {
            "id": 1,
            "pictures": ["a.png"],
            "task": "follow-up",
            "lang": "zh",
            "tiles": 6,
            "turns": [["A?", "x"], ["B?", BOX]],
        },
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_turns_are_asked_one_after_the_other_with_pictures_before_the_first(folder):
    seen = []

    def server(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        seen.append(body["messages"])
        text = "3" if len(body["messages"]) == 1 else BOX
        return httpx.Response(200, json={"choices": [{"message": {"content": text}}]})

    questions = read_questions(folder / "q.jsonl")
    answers = asyncio.run(evaluate(questions, folder, url="http://x", transport=httpx.MockTransport(server)))
    table = summarise(answers)
    assert table["counting"]["right"] == 1 and table["follow-up · zh"]["mean_iou"] == 1
    assert table["follow-up · 6-9 tiles"]["n"] == 1
    assert "names_found" not in table["counting"] and "names_found" not in table["follow-up"]
    last = max(seen, key=len)
    assert [m["role"] for m in last] == ["user", "assistant", "user"]
    assert last[0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_names_of_lists_are_counted_over_all_answers_of_a_task():
    def answer(expected: str, said: str) -> Answer:
        question = Question(0, (), (("What is in the picture?", expected),), "naming", "en", 1)
        return Answer(question, said, score(expected, said), 0.1)

    row = summarise([answer("cat, dog", "dog, cat"), answer("car", "car"), answer("sun, tree", "sun")])["naming"]
    assert row == {"n": 3, "right": 0.3333, "names_found": 0.8, "names_true": 1.0}


def test_a_refusal_says_what_the_server_said(folder):
    transport = httpx.MockTransport(lambda _: httpx.Response(401, text="no key"))
    with pytest.raises(SetupError, match="401: no key"):
        asyncio.run(evaluate(read_questions(folder / "q.jsonl"), folder, url="http://x", transport=transport))


def test_a_question_that_is_too_long_for_the_model_is_a_wrong_answer(folder):
    transport = httpx.MockTransport(lambda _: httpx.Response(400, text="too long"))
    answers = asyncio.run(evaluate(read_questions(folder / "q.jsonl"), folder, url="http://x", transport=transport))
    assert [a.score.right for a in answers] == [0, 0] and "too long" in answers[0].text


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": 1}')
    with pytest.raises(SetupError, match="line 1"):
        read_questions(tmp_path / "q.jsonl")
