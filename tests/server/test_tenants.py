"""Keys, their files, their limits, and what a browser may do."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import FakeModel
from server.bodies import Connect, chat
from vl2.core.errors import RateLimited, SetupError
from vl2.core.secret import Secret
from vl2.server.quotas import Quotas
from vl2.server.tenants import Key, KeyRing

URL = "/v1/chat/completions"


def line(tenant: str, key: str, **limits: Any) -> str:
    return json.dumps({"tenant": tenant, "sha256": hashlib.sha256(key.encode()).hexdigest(), **limits}) + "\n"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("# two tenants\n" + line("alice", "key-a", priority=5) + "\n" + line("bob", "key-b"))
    return file


def change(file: Path, text: str) -> None:
    """As an editor saves: a new file in the place of the old one."""
    other = file.with_suffix(".new")
    other.write_text(text)
    os.replace(other, file)


# ---- keys -----------------------------------------------------------------------------------------------------------


async def test_each_key_of_the_file_opens_and_no_other(connect: Connect, keys_file: Path) -> None:
    client = connect(keys_file=str(keys_file))
    for key, status in {"key-a": 200, "key-b": 200, "key-c": 401, "": 401}.items():
        assert (await client.get("/v1/models", headers=bearer(key))).status_code == status
        assert (await client.get("/v1/models", headers={"x-api-key": key})).status_code == status


async def test_the_file_is_read_again_when_it_changes(connect: Connect, keys_file: Path) -> None:
    client = connect(keys_file=str(keys_file))
    change(keys_file, line("carol", "key-c"))
    assert (await client.get("/v1/models", headers=bearer("key-c"))).status_code == 200
    assert (await client.get("/v1/models", headers=bearer("key-a"))).status_code == 401


@pytest.mark.parametrize("text", ["{", "[]", line("a b", "x"), line("a", "x", rate=1), line("a", "x", priority=1.5)])
async def test_a_broken_file_changes_nothing_while_running_and_stops_the_start(keys_file: Path, text: str) -> None:
    ring = KeyRing(file=str(keys_file))
    change(keys_file, text)
    assert ring.find("key-a") is not None
    with pytest.raises(SetupError, match=r"--keys-file .* cannot be read: line 1"):
        KeyRing(file=str(keys_file))


def test_a_file_without_keys_lets_no_one_in_and_an_empty_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("")
    ring = KeyRing(file=str(tmp_path / "keys"))
    assert not ring.is_open and ring.find("") is None
    with pytest.raises(SetupError, match="empty"):
        KeyRing([Secret("")])


async def test_the_tenant_and_the_priority_of_a_key_go_with_its_requests(connect: Connect, keys_file: Path) -> None:
    model = FakeModel()
    client = connect(model, keys_file=str(keys_file))
    for key, fields in [("key-a", {"priority": -50}), ("key-a", {"priority": 7}), ("key-b", {"priority": -3})]:
        await client.post(URL, json=chat(cache_salt="s", **fields), headers=bearer(key))
    assert [(o.tenant, o.priority, o.cache_salt) for o in model.options] == [
        ("alice", 5, "s"),
        ("alice", 12, "s"),
        ("bob", 0, "s"),  # beside others nobody puts himself before them
    ]


async def test_a_shared_cache_is_asked_for(connect: Connect, keys_file: Path) -> None:
    model = FakeModel()
    await connect(model, keys_file=str(keys_file), shared_cache=True).post(URL, json=chat(), headers=bearer("key-a"))
    assert model.options[0].tenant == ""


async def test_numbers_about_all_tenants_are_for_the_scrape_key_alone(connect: Connect, keys_file: Path) -> None:
    async def statuses(client: httpx.AsyncClient, path: str) -> list[int]:
        return [(await client.get(path, headers=bearer(key))).status_code for key in ("key-a", "scrape", "x")]

    assert await statuses(connect(keys_file=str(keys_file)), "/metrics") == [401, 401, 401]
    client = connect(keys_file=str(keys_file), scrape_key=Secret("scrape"))
    assert "no valid scrape key" in (await client.get("/metrics", headers=bearer("key-a"))).text
    assert await statuses(client, "/metrics") == [401, 200, 401]
    assert await statuses(client, "/v1/models") == [200, 401, 401]


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret("hush")
    assert {str(secret), repr(secret), f"{secret}", f"{[secret]}", f"{secret:>3}"} == {"***", "[***]"}


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_a_minute_s_worth_of_requests_fills_evenly() -> None:
    now = [0.0]
    quotas, key = Quotas(lambda: now[0]), Key("a", b"a", requests_per_minute=2)

    def is_taken() -> bool:
        try:
            quotas.take(key)
        except RateLimited as error:
            assert 0 < error.retry_after_s <= 30
            return False
        return True

    assert [is_taken(), is_taken(), is_taken()] == [True, True, False]
    now[0] = 30.0
    assert [is_taken(), is_taken()] == [True, False]
    now[0] = 1000.0
    assert [is_taken(), is_taken(), is_taken()] == [True, True, False]


async def test_concurrency_is_counted_for_each_key_and_given_back(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(line("a", "one", max_concurrent=1) + line("a", "two", max_concurrent=1))
    gate = asyncio.Event()
    model = FakeModel([gate, *FakeModel()._steps([], type("P", (), {"n": 1, "logprobs": None})())])  # type: ignore[arg-type]
    client = connect(model, keys_file=str(tmp_path / "keys"))
    first = asyncio.ensure_future(client.post(URL, json=chat(), headers=bearer("one")))
    while not model.asked:
        await asyncio.sleep(0)
    refused = await client.post(URL, json=chat(), headers=bearer("one"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.headers["retry-after"]
    second = asyncio.ensure_future(client.post(URL, json=chat(), headers=bearer("two")))
    gate.set()
    assert {(await first).status_code, (await second).status_code} == {200}
    assert (await client.post(URL, json=chat(), headers=bearer("one"))).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "end"),
    [("GET", "/v1/models", b"", b"}"), ("POST", URL, json.dumps(chat(stream=True)).encode(), b"[DONE]")],
)
async def test_who_has_read_the_end_of_an_answer_may_ask_again_at_once(
    connect: Connect, tmp_path: Path, method: str, path: str, body: bytes, end: bytes
) -> None:
    """Though the server has still something to do for the first."""
    (tmp_path / "keys").write_text(line("a", "one", max_concurrent=1))
    client = connect(keys_file=str(tmp_path / "keys"))
    transport, statuses = client._transport, []
    assert isinstance(transport, httpx.ASGITransport)
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "asgi": {"version": "3.0"}}
    headers = {"host": "localhost", "authorization": "Bearer one", "content-type": "application/json"}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    sent = iter([{"type": "http.request", "body": body}])

    async def receive() -> Any:
        return next(sent, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if end in message.get("body", b""):
            statuses.append((await client.get("/v1/models", headers=bearer("one"))).status_code)
        elif message["type"] == "http.response.start":
            statuses.append(message["status"])

    await transport.app(scope, receive, send)
    assert statuses == [200, 200]


# ---- browsers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("10.1.2.3", 200),
        ("vl2.example", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example#localhost", 403),
        ("", 403),
        ("[::1", 403),
    ],
)
async def test_a_page_that_made_its_name_lead_here_is_refused(connect: Connect, host: str, status: int) -> None:
    client = connect(allowed_host=("vl2.example",))
    assert (await client.post(URL, json=chat(), headers={"Host": host})).status_code == status


async def test_with_keys_every_name_is_taken_unless_there_is_a_list(connect: Connect) -> None:
    headers = bearer("k") | {"Host": "any.example"}
    assert (await connect(api_key=("k",)).get("/v1/models", headers=headers)).status_code == 200
    client = connect(api_key=("k",), allowed_host=("vl2.example",))
    assert (await client.get("/v1/models", headers=headers)).status_code == 403
    assert (await client.get("/health/ready", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost", 200), ("https://app.example", 200), ("https://evil.example", 403), ("null", 403)],
)
async def test_only_our_page_and_allowed_origins_may_ask(connect: Connect, origin: str, status: int) -> None:
    client = connect(allowed_origin=("https://app.example",))
    response = await client.post(URL, json=chat(), headers={"Origin": origin})
    assert response.status_code == status
    shared = response.headers.get("access-control-allow-origin")
    assert shared == ("https://app.example" if "app" in origin else None)


async def test_the_browser_s_question_before_is_answered_for_allowed_origins(connect: Connect) -> None:
    client = connect(api_key=("k",), allowed_origin=("https://app.example",))
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    response = await client.options(URL, headers=ask | {"Origin": "https://app.example"})
    assert (response.status_code, response.headers["access-control-allow-headers"]) == (204, "authorization")
    assert (await client.options(URL, headers=ask | {"Origin": "https://evil.example"})).status_code == 403


@pytest.mark.parametrize("path", ["/", "/v1/models", "/nothing", "/health"])
async def test_every_answer_has_the_headers_that_keep_it_harmless(connect: Connect, path: str) -> None:
    headers = (await connect().get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("body", "words"),
    [({"a": [[[[[[1]]]]]]}, "the limit is 5 levels"), ({"a": [0] * 200}, "more than 100 values")],
)
async def test_deep_and_wide_bodies_are_refused(connect: Connect, body: dict[str, Any], words: str) -> None:
    client = connect(max_json_depth=5, max_json_values=100)
    response = await client.post(URL, json=chat() | body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
