"""vl2 chat: what a line does to the conversation, and what is shown."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from rich.console import Console

from tests.cli.conftest import Result, SyncFakeModel
from tests.fakes import answer
from vl2.cli.chat import Conversation, converse
from vl2.core.errors import ContextLengthExceeded
from vl2.core.types import Box, GroundedObject, Message, SamplingParams


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def conversation(fake: SyncFakeModel, screen: io.StringIO) -> Conversation:
    return Conversation(fake, SamplingParams(), Console(file=screen, width=80))  # type: ignore[arg-type]


def say(conversation: Conversation, lines: Iterable[str | BaseException]) -> None:
    remaining = iter(lines)

    def read_line() -> str:
        line = next(remaining, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    converse(conversation, read_line)


def test_a_question_follows_the_whole_conversation(conversation: Conversation, fake: SyncFakeModel) -> None:
    say(conversation, ["What is it?", "", "And now?"])
    first, reply = Message("user", "What is it?"), Message("assistant", "A red square.")
    assert [messages for messages, _ in fake.asked] == [[first], [first, reply, Message("user", "And now?")]]


def test_pictures_go_with_the_next_question_only(
    conversation: Conversation, fake: SyncFakeModel, tmp_path: Path
) -> None:
    (tmp_path / "a cat.png").write_bytes(b"cat")
    say(conversation, [f"/image '{tmp_path}/a cat.png'", "What is it?", "Sure?"])
    asked = fake.asked[-1][0]
    assert [message.images for message in asked] == [(b"cat",), (), ()]
    assert asked[0].content == "<image>\nWhat is it?"


def test_an_answer_is_shown_with_its_boxes(
    conversation: Conversation, fake: SyncFakeModel, screen: io.StringIO
) -> None:
    fake._script = answer("[the cat]", grounding=(GroundedObject("the cat", (Box(1, 2, 3, 4),), ((1, 2, 3, 4),)),))
    say(conversation, ["Where?"])
    assert screen.getvalue().startswith("[the cat]\nthe cat: (1, 2) – (3, 4) px\n10 + 3 tokens, ")


def test_a_failed_turn_is_taken_back(
    conversation: Conversation, fake: SyncFakeModel, screen: io.StringIO, tmp_path: Path
) -> None:
    (tmp_path / "cat.png").write_bytes(b"cat")
    fake._script = [ContextLengthExceeded("too long")]
    say(conversation, [f"/image {tmp_path}/cat.png", "What is it?"])
    assert "too long" in screen.getvalue()
    assert (conversation.messages, len(conversation.pictures)) == ([], 1)


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(conversation: Conversation, fake: SyncFakeModel) -> None:
    fake._script = [KeyboardInterrupt()]
    say(conversation, ["Tell me all", KeyboardInterrupt(), "/help"])
    assert conversation.messages == []


def test_clear_forgets(conversation: Conversation, screen: io.StringIO) -> None:
    say(conversation, ["What is it?", "/clear"])
    assert conversation.messages == []


def test_unknown_commands_show_the_help(conversation: Conversation, fake: SyncFakeModel, screen: io.StringIO) -> None:
    say(conversation, ["/imgae x.png", "/image no.png", "/quit", "never read"])
    assert "/image PATH" in screen.getvalue()
    assert "cannot read no.png: No such file or directory" in screen.getvalue()
    assert fake.asked == []


def test_the_command_runs_until_the_input_ends(
    vl2: Callable[..., Result], fake: SyncFakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vl2.cli.chat.HISTORY_FILE", tmp_path / "history")
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n/quit\n"))
    result = vl2("chat", "--temperature", "0.4")
    assert (result.code, "A red square." in result.stdout) == (0, True)
    assert fake.asked[0][1] == SamplingParams(temperature=0.4)
