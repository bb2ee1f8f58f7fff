from __future__ import annotations

import pytest

from vl2.core.errors import InvalidRequest
from vl2.core.types import Message
from vl2.processing.chat import chat_segments, text_segments


def user(text: str, *images: bytes) -> Message:
    return Message("user", text, images)


def test_a_question_ends_where_the_answer_begins(tokenizer):
    [ids] = chat_segments([user("Hi")], tokenizer)
    assert ids == [tokenizer.bos_id, *tokenizer.encode("<|User|>: Hi\n\n<|Assistant|>:")]


def test_an_empty_last_assistant_message_changes_nothing(tokenizer):
    assert chat_segments([user("Hi"), Message("assistant", "")], tokenizer) == chat_segments([user("Hi")], tokenizer)


def test_past_answers_end_in_eos_and_the_last_one_is_continued(tokenizer):
    hi, yes = tokenizer.encode("<|User|>: Hi\n\n<|Assistant|>:"), tokenizer.encode("Yes")
    [ids] = chat_segments([user("Hi"), Message("assistant", "Yes"), user("Hi"), Message("assistant", "Yes")], tokenizer)
    assert ids == [tokenizer.bos_id, *hi, *yes, tokenizer.eos_id, *hi, *yes]


def test_the_system_message_is_raw_and_runs_into_the_question(tokenizer):
    [ids] = chat_segments([Message("system", " Be brief.\n"), user("Hi")], tokenizer)
    assert ids == [
        tokenizer.bos_id,
        *tokenizer.encode("Be brief."),
        *tokenizer.encode("<|User|>: Hi\n\n<|Assistant|>:"),
    ]


def test_outer_white_space_goes_and_an_empty_question_has_none(tokenizer):
    assert chat_segments([user(" Hi\n")], tokenizer) == chat_segments([user("Hi")], tokenizer)
    [ids] = chat_segments([user(" \n")], tokenizer)
    assert ids == [tokenizer.bos_id, *tokenizer.encode("<|User|>:<|Assistant|>:")]


def test_text_is_cut_at_pictures_and_each_piece_encoded_by_itself(tokenizer):
    segments = chat_segments([user("<image><image>\nWhich?", b"a", b"b"), Message("assistant", "The")], tokenizer)
    assert segments == [
        [tokenizer.bos_id, *tokenizer.encode("<|User|>: ")],
        [],
        tokenizer.encode("\nWhich?\n\n<|Assistant|>:") + tokenizer.encode("The"),
    ]


def test_a_plain_prompt_is_bos_and_the_text_as_it_is(tokenizer):
    assert text_segments(" a ", 0, tokenizer) == [[tokenizer.bos_id, *tokenizer.encode(" a ")]]
    with pytest.raises(InvalidRequest, match="the prompt has 0 <image> tags but 1 pictures"):
        text_segments("a", 1, tokenizer)


@pytest.mark.parametrize(
    ("messages", "problem", "param"),
    [
        ([], "messages is empty", "messages"),
        ([Message("tool", "x")], "has the role 'tool'; roles are system, user, assistant", "messages[0].role"),
        ([user("x"), Message("system", "x")], "message 2 is a system message", "messages[1].role"),
        ([Message("system", "x")], "has no question", "messages"),
        ([user("<image>")], "1 <image> tags but 0 pictures", "messages[0].content"),
        ([user("x", b"")], "0 <image> tags but 1 pictures", "messages[0].content"),
        ([user("x"), Message("assistant", "<image>")], "only user messages may", "messages[1].content"),
        ([Message("system", "<image>", (b"",)), user("x")], "only user messages may", "messages[0].content"),
        ([user("x\ud83d")], "lone surrogate", "messages[0].content"),
    ],
)
def test_a_conversation_without_place_in_the_format_is_refused(tokenizer, messages, problem, param):
    with pytest.raises(InvalidRequest) as caught:
        chat_segments(messages, tokenizer)
    assert problem in caught.value.message
    assert caught.value.param == param
