"""vl2 watch: an answer a picture, one line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Result, SyncFakeModel
from tests.fakes import answer
from vl2.core.types import Completion, Message, SamplingParams, fold_deltas


@pytest.fixture
def chatting(fake: SyncFakeModel, monkeypatch: pytest.MonkeyPatch) -> SyncFakeModel:
    def chat(messages: str | list[Message], params: SamplingParams) -> Completion:
        fake.asked.append((messages, params))  # type: ignore[arg-type]
        return fold_deltas(answer("A red\nsquare."))

    monkeypatch.setattr(fake, "chat", chat, raising=False)
    return fake


def test_the_command_prints_a_line_a_picture(
    vl2: Callable[..., Result],
    chatting: SyncFakeModel,
    tmp_path: Path,
) -> None:
    (tmp_path / "cat.png").write_bytes(b"picture bytes")
    result = vl2("watch", str(tmp_path), "What is it?", "--existing", "--count", "1", "--max-tokens", "4")
    assert (result.code, result.stdout) == (0, "cat.png\tA red square.\n")
    (warm_up, _), (messages, params) = chatting.asked
    assert warm_up == "What is it?", "the model is loaded before the first picture counts"
    assert messages == [Message("user", "<image>\nWhat is it?", (b"picture bytes",))]
    assert params == SamplingParams(max_tokens=4)
    told = json.loads(vl2("watch", str(tmp_path), "What?", "--existing", "--count", "1", "--json").stdout)
    assert (told["picture"], told["text"], told["dropped"]) == ("cat.png", "A red\nsquare.", 0)
