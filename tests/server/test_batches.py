"""Files and batches through the real `openai` client, and what becomes of them over restarts and time."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.batch_create_params import BatchCreateParams
from openai.types.file_create_params import FileCreateParams

from e2e.server_process import wait_until
from fakes import FakeModel, answer
from server.bodies import PNG, Connect, chat
from server.test_openai_client import client, running
from vl2.core.errors import CapacityError, EngineError, NotFound, SetupError
from vl2.server.batch.database import MIGRATIONS, Database
from vl2.server.batch.files import FileStore
from vl2.server.batch.input import read_lines
from vl2.server.batch.schema import BatchRequest, FileUpload
from vl2.server.fields import table
from vl2.server.ids import NodeIds

CHAT = "/v1/chat/completions"


def line(custom_id: str, text: str = "Hi", url: str = CHAT, **fields: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": chat(text, model="fake")} | fields


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in lines)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:
        flags = {"state_dir": str(tmp_path / "state")}
        yield lambda model=None, **config: client(stack.enter_context(running(model or FakeModel(), **flags | config)))


def finished(api: openai.OpenAI, batch_id: str) -> Any:
    done = ("completed", "failed", "expired", "cancelled")
    wait_until(lambda: api.batches.retrieve(batch_id).status in done)
    return api.batches.retrieve(batch_id)


def run(api: openai.OpenAI, data: bytes, endpoint: Any = CHAT) -> Any:
    file = api.files.create(file=("in.jsonl", data), purpose="batch")
    made = api.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"a": "b"})
    return finished(api, made.id)


def lines_of(api: openai.OpenAI, file_id: str) -> list[Any]:
    return [json.loads(text) for text in api.files.content(file_id).text.splitlines()]


def test_the_fields_of_the_client_are_known() -> None:
    assert set(BatchCreateParams.__annotations__) <= {row.path for row in table(BatchRequest)}
    assert set(FileCreateParams.__annotations__) == {row.path for row in table(FileUpload) if "." not in row.path}


def test_a_form_s_unknown_field_is_named(api: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="purpos is not a field of this API; did you mean purpose") as bad:
        api().files.create(file=("a", b"x"), purpose="batch", extra_body={"purpos": "vision"})
    assert bad.value.param == "purpos"


def test_a_file_is_kept_listed_read_and_deleted(api: Any) -> None:
    api = api()
    made = api.files.create(
        file=("a.png", PNG), purpose="vision", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (made.bytes, made.filename, made.purpose) == (len(PNG), "a.png", "vision")
    assert made.expires_at == made.created_at + 3600
    assert api.files.content(made.id).content == PNG
    other = api.files.create(file=("b", b"x"), purpose="user_data")
    assert [file.id for file in api.files.list()] == [other.id, made.id]
    assert [file.id for file in api.files.list(purpose="vision")] == [made.id]
    assert [file.id for file in api.files.list(limit=1)] == [other.id, made.id]  # the client turns pages
    assert [file.id for file in api.files.list(limit=1, order="asc")] == [made.id, other.id]
    assert api.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        api.files.retrieve(made.id)


def test_a_picture_is_asked_about_by_its_id(api: Any) -> None:
    model = FakeModel()
    api = api(model)
    file = api.files.create(file=("a.png", PNG), purpose="vision")
    content: Any = [{"type": "input_image", "file_id": file.id}, {"type": "input_text", "text": "What?"}]
    api.responses.create(model="fake", input=[{"role": "user", "content": content}])
    assert model.asked[0][0][0].images == (PNG,)
    with pytest.raises(openai.NotFoundError) as missing:
        content[0]["file_id"] = file.id[:-1] + ("0" if file.id[-1] != "0" else "1")
        api.responses.create(model="fake", input=[{"role": "user", "content": content}])
    assert missing.value.param == "input[0].content[0]"


def test_every_line_has_its_answer_behind_all_that_is_waited_for(api: Any) -> None:
    model = FakeModel()
    api = api(model)
    batch = run(api, jsonl(*(line(f"q{idx}", f"Hi {idx}") for idx in range(20)), line("bad", max_tokens=1, body={})))
    assert (batch.status, batch.metadata) == ("completed", {"a": "b"})
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (21, 20, 1)
    output, errors = lines_of(api, batch.output_file_id), lines_of(api, batch.error_file_id)
    assert [entry["custom_id"] for entry in output] == [f"q{idx}" for idx in range(20)]
    assert {e["response"]["body"]["choices"][0]["message"]["content"] for e in output} == {"A red square."}
    assert [(e["custom_id"], e["response"]["status_code"]) for e in errors] == [("bad", 400)]
    assert {options.priority for options in model.options} == {50}


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/responses", {"model": "fake", "input": "Hi"}),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}),
    ],
)
def test_lines_may_be_of_other_dialects(api: Any, endpoint: str, body: Any) -> None:
    api = api()
    entry = jsonl(line("a", url=endpoint, body=body))
    file = api.files.create(file=("in.jsonl", entry), purpose="batch")
    made = api.post(
        "/batches",
        body={"input_file_id": file.id, "endpoint": endpoint, "completion_window": "24h"},
        cast_to=dict[str, Any],
    )
    batch = finished(api, made["id"])
    assert "A red square." in json.dumps(lines_of(api, batch.output_file_id)[0]["response"]["body"])


def test_a_busy_server_is_no_answer_but_a_broken_engine_is(api: Any) -> None:
    tries: dict[str, int] = {}

    def script(messages: Any, params: Any) -> Any:
        text = messages[0].content
        tries[text] = tries.get(text, 0) + 1
        if text == "busy" and tries[text] < 3:
            return [CapacityError("full", retry_after_s=0.01)]
        return [EngineError("dead")] if text == "broken" else answer("Yes.")

    api = api(FakeModel(script))
    batch = run(api, jsonl(line("a", "busy"), line("b", "broken")))
    assert lines_of(api, batch.output_file_id)[0]["custom_id"] == "a"
    assert lines_of(api, batch.error_file_id)[0]["response"]["status_code"] == 500
    assert tries == {"busy": 3, "broken": 3}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no lines"),
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (jsonl({"custom_id": ""}), "custom_id"),
        (jsonl(line("a"), line("a")), "stands on another line"),
        (jsonl(line("a", method="GET")), "must be POST"),
        (jsonl(line("a", url="/v1/responses")), "the batch's endpoint"),
        (jsonl(line("a", body=[])), "body must be"),
        (jsonl(line("a", body={"stream": True})), "stream must be left out"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"custom_id": "\\ud800", "method": "POST", "url": "/v1/chat/completions", "body": {}}', "no Unicode"),
        (jsonl(*(line(str(idx)) for idx in range(11))), "more than 10 lines"),
    ],
)
def test_a_file_that_cannot_be_worked_through_is_told_line_by_line(data: bytes, words: str) -> None:
    _, errors = read_lines(data, CHAT, max_lines=10)
    assert words in errors[0]["message"]


def test_a_batch_with_a_bad_line_fails_before_anything_is_asked(api: Any) -> None:
    model = FakeModel()
    batch = run(api(model), jsonl(line("a"), line("a")))
    assert (batch.status, batch.errors.data[0].line, model.asked) == ("failed", 2, [])


def test_a_cancelled_batch_writes_what_is_done(api: Any) -> None:
    silent = asyncio.Event()
    model = FakeModel(lambda messages, params: [silent] if messages[0].content == "slow" else answer("Yes."))
    api = api(model)
    file = api.files.create(file=("in.jsonl", jsonl(line("a"), line("b", "slow"))), purpose="batch")
    made = api.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    wait_until(lambda: api.batches.retrieve(made.id).request_counts.completed == 1)
    api.batches.cancel(made.id)
    batch = finished(api, made.id)
    assert batch.status == "cancelled"
    assert [entry["custom_id"] for entry in lines_of(api, batch.output_file_id)] == ["a"]
    assert lines_of(api, batch.error_file_id)[0]["error"]["code"] == "batch_cancelled"
    with pytest.raises(openai.BadRequestError, match="cannot be cancelled"):
        api.batches.cancel(made.id)


def test_a_batch_goes_on_after_a_restart(tmp_path: Path) -> None:
    flags = {"state_dir": str(tmp_path)}
    silent = asyncio.Event()
    with running(FakeModel(lambda m, p: [silent] if m[0].content == "slow" else answer("One.")), **flags) as url:
        api = client(url)
        file = api.files.create(file=("in.jsonl", jsonl(line("a"), line("b", "slow"))), purpose="batch")
        made = api.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        wait_until(lambda: api.batches.retrieve(made.id).request_counts.completed == 1)
    with running(FakeModel(answer("Two.")), **flags) as url:
        batch = finished(client(url), made.id)
        texts = {
            entry["custom_id"]: entry["response"]["body"]["choices"][0]["message"]["content"]
            for entry in lines_of(client(url), batch.output_file_id)
        }
    assert texts == {"a": "One.", "b": "Two."}


async def test_a_file_that_goes_while_it_is_asked_for_is_a_404(tmp_path: Path) -> None:
    database = Database(tmp_path)
    files = FileStore(database, NodeIds("n"), 100)
    made = await files.add("a", "f", "batch", [b"x"])
    (files.folder / made["id"]).unlink()
    with pytest.raises(NotFound):
        await files.read("a", made["id"])
    database.close()


async def test_what_has_expired_is_gone_also_from_the_disk(tmp_path: Path) -> None:
    now = [1_000_000.0]
    database = Database(tmp_path)
    files = FileStore(database, NodeIds("n"), 100, lambda: now[0])
    made = await files.add("a", "f", "batch", [b"x"], expires_s=3600)
    now[0] += 3601
    assert await files.all_of("a", None) == []
    await files.sweep()
    assert not (files.folder / made["id"]).exists()
    database.close()


def test_the_files_of_a_tenant_are_limited(api: Any) -> None:
    api = api(max_state_bytes=10)
    api.files.create(file=("a", b"x" * 8), purpose="user_data")
    with pytest.raises(openai.APIStatusError, match="more than 10 bytes"):
        api.files.create(file=("b", b"x" * 8), purpose="user_data")


def test_a_folder_of_another_server_or_version_stops_the_start(tmp_path: Path) -> None:
    database = Database(tmp_path)
    with pytest.raises(SetupError, match="in use by another server"):
        Database(tmp_path)
    database.close()
    connection = sqlite3.connect(tmp_path / "state.db")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(SetupError, match="use a newer vl2"):
        Database(tmp_path)


async def test_without_a_folder_the_routes_say_how_to_turn_them_on(connect: Connect) -> None:
    client = connect()
    for path in ("/v1/files", "/v1/batches", "/v1/files/x", "/v1/batches/x"):
        response = await client.get(path)
        assert (response.status_code, "--state-dir" in response.text) == (400, True)


def test_the_state_is_for_its_owner_s_eyes_only(api: Any, tmp_path: Path) -> None:
    api().files.create(file=("a", b"x"), purpose="user_data")
    state = tmp_path / "state"
    modes = {path.stat().st_mode & 0o077 for path in [state, state / "state.db", *(state / "files").iterdir()]}
    assert modes == {0}
