"""Neither of two tenants reads, lists, cancels or goes on from what is the other's, on whatever route."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import FakeModel
from server.bodies import PNG_URL, Connect, chat
from server.test_openai_client import running
from server.test_tenants import bearer, line

OWN_IDS = ("response_id", "file_id", "batch_id")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("tenants")
    (folder / "keys").write_text(line("alice", "key-a") + line("bob", "key-b"))
    with running(FakeModel(), keys_file=str(folder / "keys"), state_dir=str(folder / "state")) as url:
        yield url.removesuffix("/v1")


@pytest.fixture(scope="module")
def alices(url: str) -> dict[str, str]:
    """Ids of one of each that is hers."""
    with httpx.Client(base_url=url, headers=bearer("key-a")) as alice:
        upload = {"file": ("in.jsonl", json.dumps({"custom_id": "a"}).encode())}
        file = alice.post("/v1/files", files=upload, data={"purpose": "batch"}).json()
        body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = alice.post("/v1/batches", json=body).json()
        response = alice.post("/v1/responses", json={"input": "My secret"}).json()
    return {"response_id": response["id"], "file_id": file["id"], "batch_id": batch["id"]}


def id_routes(url: str) -> list[tuple[str, str]]:
    paths = httpx.get(url + "/openapi.json", headers=bearer("key-a")).json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() if "{" in path for method in methods]


def test_every_id_route_is_404_to_another_tenant_as_if_it_never_was(url: str, alices: dict[str, str]) -> None:
    routes = [(method, path) for method, path in id_routes(url) if not path.startswith("/v1/models")]
    assert len(routes) >= 9
    assert all(any(f"{{{name}}}" in path for name in OWN_IDS) for _, path in routes), routes
    for method, path in routes:
        with httpx.Client(base_url=url) as http:
            others = http.request(method, path.format(**alices), headers=bearer("key-b"))
            unknown = {name: made[:-4] + "0000" for name, made in alices.items()}
            nobodys = http.request(method, path.format(**unknown), headers=bearer("key-b"))
        assert others.status_code == nobodys.status_code == 404, (method, path)
        words = [
            answer.json()["error"]["message"].replace(own, "ID")
            for answer, ids in ((others, alices), (nobodys, unknown))
            for own in [next(made for made in ids.values() if made in answer.text)]
        ]
        assert words[0] == words[1]


def test_her_own_are_still_there_for_her(url: str, alices: dict[str, str]) -> None:
    for name, path in {"response_id": "responses", "file_id": "files", "batch_id": "batches"}.items():
        assert httpx.get(f"{url}/v1/{path}/{alices[name]}", headers=bearer("key-a")).status_code == 200


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_lists_are_their_own(url: str, alices: dict[str, str], path: str) -> None:
    assert httpx.get(url + path, headers=bearer("key-b")).json()["data"] == []
    assert len(httpx.get(url + path, headers=bearer("key-a")).json()["data"]) == 1


def test_an_id_in_a_body_opens_nothing_either(url: str, alices: dict[str, str]) -> None:
    file_part = {"type": "file", "file": {"file_id": alices["file_id"]}}
    image_part = {"type": "input_image", "file_id": alices["file_id"]}
    source = {"type": "image", "source": {"type": "file", "file_id": alices["file_id"]}}
    bodies: list[tuple[str, Any]] = [
        ("/v1/responses", {"input": "x", "previous_response_id": alices["response_id"]}),
        ("/v1/responses/input_tokens", {"input": "x", "previous_response_id": alices["response_id"]}),
        ("/v1/responses", {"input": [{"role": "user", "content": [image_part]}]}),
        ("/v1/chat/completions", chat([file_part])),
        ("/v1/tokenize", {"messages": chat([file_part])["messages"]}),
        ("/v1/estimate", chat([file_part])),
        ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": [source]}]}),
        (
            "/v1/batches",
            {
                "input_file_id": alices["file_id"],
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            },
        ),
    ]
    for path, body in bodies:
        assert httpx.post(url + path, json=body, headers=bearer("key-b")).status_code == 404, path


def test_numbers_about_all_are_for_neither(url: str) -> None:
    for key in ("key-a", "key-b"):
        assert httpx.get(url + "/metrics", headers=bearer(key)).status_code == 401


QUESTIONS: dict[str, Any] = {
    "/v1/chat/completions": chat(),
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"max_tokens": 1, "messages": chat()["messages"]},
    "/predict": {"prompt": "x", "image": PNG_URL},
}
COUNTED: dict[str, Any] = {
    "/v1/tokenize": {"prompt": "x"},
    "/v1/estimate": chat(),
    "/v1/responses/input_tokens": {"input": "x"},
    "/v1/messages/count_tokens": chat(),
}
WITHOUT_CACHE = {"/v1/pictures", "/v1/files", "/v1/batches"}
"""Their POST decodes anew, or touches no model."""


def test_the_routes_whose_time_could_tell_are_all_known(url: str) -> None:
    paths = httpx.get(url + "/openapi.json", headers=bearer("key-a")).json()["paths"]
    posts = {path for path, methods in paths.items() if "post" in methods and "{" not in path}
    assert posts == {*QUESTIONS, *COUNTED} | WITHOUT_CACHE


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("path", [*QUESTIONS, *COUNTED])
async def test_nobody_meets_in_a_cache_what_the_other_has_sent(
    connect: Connect, tmp_path: Path, path: str, is_shared: bool
) -> None:
    """Else the time of an answer, or of a count, would tell. `--shared-cache` asks for it."""
    (tmp_path / "keys").write_text(line("alice", "key-a") + line("bob", "key-b"))
    model = FakeModel()
    client = connect(model, keys_file=str(tmp_path / "keys"), shared_cache=is_shared)
    for key in ("key-a", "key-b"):
        answer = await client.post(path, json=(QUESTIONS | COUNTED)[path], headers=bearer(key))
        assert answer.status_code == 200, answer.text
    met_by = [options.tenant for options in model.options] + model.counted_for
    assert met_by == (["", ""] if is_shared else ["alice", "bob"])


def test_what_is_kept_for_one_is_not_fetched_by_the_other_s_batch(url: str, alices: dict[str, str]) -> None:
    """A line of a batch has its owner's rights and no more."""
    body = {"input": "x", "previous_response_id": alices["response_id"]}
    entry = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body}
    with httpx.Client(base_url=url, headers=bearer("key-b")) as bob:
        upload = {"file": ("in.jsonl", json.dumps(entry).encode())}
        file = bob.post("/v1/files", files=upload, data={"purpose": "batch"}).json()
        batch = bob.post(
            "/v1/batches",
            json={"input_file_id": file["id"], "endpoint": "/v1/responses", "completion_window": "24h"},
        ).json()
        while batch["status"] not in ("completed", "failed"):
            batch = bob.get(f"/v1/batches/{batch['id']}").json()
        (told,) = bob.get(f"/v1/files/{batch['error_file_id']}/content").text.splitlines()
    assert json.loads(told)["response"]["status_code"] == 404
