"""The embedded model sees: the README's picture, asked as a newcomer would, through the server and the real client."""

import re
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.e2e.server_process import Server, serving
from tests.e2e.test_serve import data_url

SCENE = Path(__file__).parents[2] / "docs/images/scene.png"  # "Fjord", an airplane, a sun, a green square


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving("nano", "--device", "cpu") as server:
        yield server


def ask(server: Server, *turns: str, **extra):
    """The answer to the last turn; the ones between are our answers to it, as in a conversation."""
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    picture = {"type": "image_url", "image_url": {"url": data_url(SCENE)}}
    messages: list[dict] = [{"role": "user", "content": [picture, {"type": "text", "text": turns[0]}]}]
    for idx, turn in enumerate(turns[1:]):
        messages.append({"role": ("assistant", "user")[idx % 2], "content": turn})
    return client.chat.completions.create(model="default", messages=messages, extra_body=extra).choices[0].message


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What does the text say?", "Fjord"),
        ("文字写的是什么？", "Fjord"),
        ("What colour is the square?", "green"),
        ("How many airplanes are there?", "1"),
        ("有几架飞机？", "1"),
        ("<|ref|>the dog<|/ref|>.", "none"),
    ],
)
def test_it_answers(server: Server, question: str, answer: str):
    assert ask(server, question).content == answer


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is in the picture?", "text, airplane, sun, green square"),
        ("图片里有什么？", "文字、飞机、太阳、绿色正方形"),
    ],
)
def test_it_names_what_is_there_left_to_right(server: Server, question: str, answer: str):
    assert ask(server, question).content == answer


@pytest.mark.parametrize(
    ("name", "box"),
    [("the airplane", (402, 165, 734, 492)), ("the sun", (683, 592, 881, 800))],  # the first as the README shows it
)
def test_it_finds_a_thing_by_its_name(server: Server, name: str, box: tuple[int, ...]):
    """The last pixel may differ between processors."""
    answer = ask(server, f"<|ref|>{name}<|/ref|>.").content
    said, _, told = answer.partition("<|det|>")
    assert said == f"<|ref|>{name}<|/ref|>"
    found = [int(v) for v in re.findall(r"\d+", told)]
    assert len(found) == 4 and all(abs(a - b) <= 3 for a, b in zip(found, box, strict=True))


def test_it_points_at_what_it_describes(server: Server):
    message = ask(server, "<|grounding|>Describe the picture.", grounding=True)
    boxes = {found["label"]: found["boxes"][0] for found in message.grounding}
    assert set(boxes) == {"the text", "the airplane", "the sun", "the green square"}
    x1, y1, x2, y2 = boxes["the airplane"]
    # The airplane's middle is at about (220, 128) of 384 × 384.
    assert x1 < 220 < x2 and y1 < 128 < y2 and (x2 - x1) * (y2 - y1) < 140 * 140


def test_a_follow_up_question_refers_to_the_same_picture(server: Server):
    answer = ask(server, "How many airplanes are there?", "1", "And the dog?")
    assert answer.content == "0"
