"""A conversation in the forms that people write it."""

import pytest

from vl2.core.errors import InvalidRequest
from vl2.core.types import Message, as_messages


def test_a_text_is_one_question():
    assert as_messages("Hello?") == [Message("user", "Hello?")]


def test_dicts_and_messages_may_be_mixed():
    turns = [{"role": "user", "content": "Hello?"}, Message("assistant", "Hello."), {"role": "user", "content": "And?"}]
    assert as_messages(turns) == [Message("user", "Hello?"), Message("assistant", "Hello."), Message("user", "And?")]


def test_pictures_come_before_the_text_unless_tags_place_them():
    first, second = as_messages(
        [
            {"role": "user", "content": "What is it?", "images": ["cat.png"]},
            {"role": "user", "content": "Is <image> like <image>?", "images": ["a.png", "b.png"]},
        ]
    )
    assert first == Message("user", "<image>\nWhat is it?", ("cat.png",))
    assert second == Message("user", "Is <image> like <image>?", ("a.png", "b.png"))


@pytest.mark.parametrize(
    "wrong",
    [
        7,
        None,
        Message("user", "Hello?"),
        {"role": "user", "content": "Hello?"},
        ["Hello?"],
        [{"role": "user"}],
        [{"role": "user", "content": "Hello?", "image": "cat.png"}],
        [{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}],
        [{"role": "user", "content": "Hello?", "images": "cat.png"}],
    ],
)
def test_anything_else_is_told_the_right_form(wrong):
    with pytest.raises(InvalidRequest, match="must be") as caught:
        as_messages(wrong)
    assert caught.value.param == "messages"
