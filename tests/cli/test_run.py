"""vl2 run: pictures and a question in, one answer on stdout."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.conftest import Result, SyncFakeModel
from tests.fakes import answer
from vl2.core.config import EngineConfig
from vl2.core.types import Box, Grammar, GroundedObject, Message, SamplingParams

Run = Callable[..., Result]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    path.write_bytes(b"picture bytes")
    return path


def test_the_answer_alone_is_on_stdout(vl2: Run, fake: SyncFakeModel, picture: Path) -> None:
    assert vl2("run", str(picture), "What is it?") == Result(0, "A red square.\n", "")
    assert fake.asked == [([Message("user", "<image>\nWhat is it?", (b"picture bytes",))], SamplingParams())]
    assert fake.is_stopped


def test_options_reach_model_and_sampling(vl2: Run, fake: SyncFakeModel) -> None:
    vl2("run", "--model", "tiny", "--device", "cpu", "--seed", "7", "--max-tokens", "9", "Hello?")
    assert (fake.opened["model"], fake.opened["engine"]) == ("tiny", EngineConfig(device="cpu"))
    assert fake.opened["in_process"] is True
    assert fake.asked[0][1] == SamplingParams(seed=7, max_tokens=9)


def test_json_carries_boxes_usage_and_finish_reason(vl2: Run, fake: SyncFakeModel) -> None:
    found = GroundedObject("猫", (Box(1, 2, 3, 4),), ((10, 20, 30, 40),))
    fake._script = answer("the 猫", grounding=(found,))
    assert json.loads(vl2("run", "--json", "Where?").stdout) == {
        "model": "nano",
        "text": "the 猫",
        "grounding": [{"label": "猫", "boxes": [[1, 2, 3, 4]], "boxes_norm": [[10, 20, 30, 40]]}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "image_tokens": 4, "cached_tokens": 2},
        "finish_reason": "stop",
    }


def test_a_dash_is_the_picture_on_stdin(vl2: Run, fake: SyncFakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"from stdin")))
    vl2("run", "-", "What is it?")
    assert fake.asked[0][0][0].images == (b"from stdin",)


def test_tags_in_the_question_place_the_pictures(vl2: Run, fake: SyncFakeModel, picture: Path) -> None:
    vl2("run", str(picture), str(picture), "A: <image> B: <image> Same?")
    assert fake.asked[0][0][0].content == "A: <image> B: <image> Same?"


def test_wrong_words_are_refused_before_a_model_loads(vl2: Run, fake: SyncFakeModel, picture: Path) -> None:
    assert "cannot read the picture no.png: No such file" in vl2("run", "no.png", "What?").stderr
    assert "what is the question about it?" in vl2("run", str(picture)).stderr
    assert "the text has 1 <image> tags but 2 pictures" in vl2("run", str(picture), str(picture), "<image>?").stderr
    assert "temperature is 3.0" in vl2("run", "--temperature", "3", "Hello?").stderr
    assert not hasattr(fake, "opened")


def test_a_schema_or_the_grammar_of_boxes_shapes_the_answer(vl2: Run, fake: SyncFakeModel, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    vl2("run", "--json-schema", str(schema), "Describe.")
    vl2("run", "--grounding", "Describe.")
    assert [params.grammar for _, params in fake.asked] == [
        Grammar("json_schema", '{"type": "object"}'),
        Grammar("grounding"),
    ]
    both = vl2("run", "--grounding", "--json-schema", str(schema), "Describe.")
    missing = vl2("run", "--json-schema", str(tmp_path / "none.json"), "Describe.")
    assert (both.code, missing.code) == (2, 2)
    assert "cannot be combined" in both.stderr and "none.json" in missing.stderr
