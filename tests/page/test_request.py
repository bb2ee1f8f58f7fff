"""Tasks, parameters, the estimate, and the request that is shown: run, it says the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fakes import FakeModel, answer
from page.serving import Open, Serve
from page.user import User

NASTY = "$(touch owned) `touch owned` \"quotes\" 'single' \\n back\\slash 😀 EOF"
ANSWER = "A red square."


def shown(user: User, tab: str) -> str:
    user.button("Request").click()
    user.page.get_by_role("tab", name=tab).click()
    code = user.page.locator("#request-code").inner_text()
    user.page.keyboard.press("Escape")
    return code


def run(command: list[str], code: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command, input=code, text=True, cwd=folder, capture_output=True, timeout=180, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "owned").exists()
    return done.stdout


def ask_with_parameters(user: User, scene: Path) -> None:
    user.page.locator("#settings").click()
    for name, value in {"temperature": "0.5", "seed": "7", "top_k": "20", "stop": "STOP", "system": NASTY}.items():
        user.page.fill(f"#parameter-{name}", value)
    user.page.locator("#settings-dialog").get_by_role("button", name="Done").click()
    user.drop(scene)
    user.ask_and_wait(NASTY)


def test_the_shown_curl_command_asks_the_same(serve: Serve, open_page: Open, scene: Path) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    ask_with_parameters(user, scene)
    told = json.loads(run(["bash"], shown(user, "curl"), scene.parent))
    assert told["choices"][0]["message"]["content"] == ANSWER
    assert model.asked[0] == model.asked[1]


def test_the_shown_python_program_asks_the_same(serve: Serve, open_page: Open, scene: Path) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    ask_with_parameters(user, scene)
    assert run([sys.executable, "-"], shown(user, "Python"), scene.parent).strip() == ANSWER
    assert model.asked[0] == model.asked[1]


def test_with_a_key_the_shown_code_takes_it_from_the_environment(serve: Serve, open_page: Open, scene: Path) -> None:
    user = open_page(serve(FakeModel(), api_key=["a-secret"]))
    user.page.fill("#key", "a-secret")
    user.page.keyboard.press("Enter")
    user.drop(scene)
    user.ask_and_wait("What is it?")
    for tab, command in {"curl": ["bash"], "Python": [sys.executable, "-"]}.items():
        code = shown(user, tab)
        assert "a-secret" not in code
        assert ANSWER in run(command, code, scene.parent, VL2_API_KEY="a-secret")
    user.take_complaints()


def test_a_file_name_cannot_leave_its_quotes_or_its_folder(serve: Serve, open_page: Open, scene: Path) -> None:
    name = "a'; touch owned; '$(touch owned).png"
    scene.rename(scene.parent / name)
    user = open_page(serve(FakeModel()))
    user.drop(scene.parent / name)
    user.ask_and_wait("What is it?")
    for tab, command in {"curl": ["bash"], "Python": [sys.executable, "-"]}.items():
        assert ANSWER in run(command, shown(user, tab), scene.parent)


# ---- tasks ----------------------------------------------------------------------------------------------------------


def test_a_task_writes_its_question_and_selects_what_to_fill_in(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel()))
    user.button("Locate").click()
    assert user.page.input_value("#question") == "<|ref|>the object<|/ref|>."
    user.page.keyboard.type("snail")
    assert user.page.input_value("#question") == "<|ref|>the snail<|/ref|>."


def test_a_task_never_takes_away_what_someone_wrote(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel()))
    user.page.fill("#question", "My own words")
    user.button("Describe").click()
    assert user.page.input_value("#question") == "My own words\nDescribe the picture."
    user.page.fill("#question", "")
    user.button("Count").click()
    user.button("Describe").click()
    assert user.page.input_value("#question") == "Describe the picture."


def test_json_is_asked_for_by_a_schema_and_shown_in_lines(serve: Serve, open_page: Open, scene: Path) -> None:
    model = FakeModel(answer('{"summary": "red", "objects": []}'))
    user = open_page(serve(model))
    user.drop(scene)
    user.button("JSON").click()
    schema = json.loads(user.page.input_value("#schema"))
    user.page.locator("#send").click()
    user.wait_for_answer()
    grammar = model.asked[0][1].grammar
    assert grammar is not None and json.loads(grammar.spec) == schema
    assert user.said() == '{\n  "summary": "red",\n  "objects": []\n}'
    assert not user.page.locator("#schema-box").is_visible()


# ---- parameters and cost --------------------------------------------------------------------------------------------


def test_parameters_are_sent_kept_and_reset(serve: Serve, open_page: Open, scene: Path) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    ask_with_parameters(user, scene)
    params: Any = model.asked[0][1]
    assert (params.temperature, params.seed, params.top_k, params.stop) == (0.5, 7, 20, ("STOP",))
    assert model.asked[0][0][0].role == "system"
    user.page.reload()
    user.button("Parameters (5 changed)").click()
    assert user.page.input_value("#parameter-temperature") == "0.5"
    user.page.get_by_role("button", name="Defaults").click()
    user.page.keyboard.press("Escape")
    user.ask_and_wait("Again?")
    assert (model.asked[1][1].temperature, model.asked[1][1].seed) == (0, None)


def test_a_value_that_is_not_allowed_is_not_sent(serve: Serve, open_page: Open) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    user.page.locator("#settings").click()
    user.page.fill("#parameter-temperature", "9")
    user.page.keyboard.press("Escape")
    user.ask_and_wait("What is it?")
    assert model.asked[0][1].temperature == 0


def test_tokens_are_counted_before_anything_is_sent(serve: Serve, open_page: Open, scene: Path) -> None:
    """The fake model counts a token for each word, one at the start, and ten a picture."""
    model = FakeModel()
    user = open_page(serve(model))
    user.page.fill("#question", "one two")
    user.page.get_by_text("3 tokens", exact=True).wait_for()
    user.drop(scene)
    user.page.get_by_text("13 tokens, 10 of pictures", exact=True).wait_for()
    sent: list[int] = []
    user.page.on("request", lambda request: sent.append(len(request.post_data or "")))
    user.page.fill("#question", "one two three")
    user.page.get_by_text("14 tokens, 10 of pictures", exact=True).wait_for()
    assert max(sent) < 400  # the picture did not travel again
    assert model.asked == []


def test_what_does_not_fit_is_told_before_it_is_sent(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel()))
    user.page.fill("#question", "word " * 5000)
    user.page.get_by_text("5001 tokens are more than the model takes (4096)").wait_for()


def test_an_expected_time_is_told_once_answers_were_measured(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel()))
    user.ask_and_wait("What is it?")
    user.page.fill("#question", "And now?")
    user.page.get_by_text("first word in about").wait_for()
