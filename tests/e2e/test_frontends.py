"""Several front-end processes share the engines, and to clients they are one server."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server_process import LIMIT_S, Server, is_gone, serving, standing_still, wait_until

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 3, "ignore_eos": True}
FLAGS = ("--device", "cpu", "--dtype", "float32", "--frontends", "3", "--node-name", "n1")
NUM_FRONTENDS = 3


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`free` has no limits; `few` may send four requests a minute; `one` may have one under way."""
    lines = []
    for name, limits in {"free": {}, "few": {"requests_per_minute": 4}, "one": {"max_concurrent": 1}}.items():
        entry = {"tenant": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **limits}
        lines.append(json.dumps(entry))
    file = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="module")
def server(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--keys-file", str(keys), "--scrape-key", "scrape", "--state-dir", str(tmp_path_factory.mktemp("state")))
    with serving("nano", *FLAGS, *flags) as server:
        yield server


def frontends_of(server: Server) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has just died
            found += [child] if "vl2.cli.frontend" in child.cmdline() else []
    return found


def send(server: Server, method: str, path: str, key: str = "free", **given) -> httpx.Response:
    """On a connection of its own, so that any front-end may take it."""
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.request(method, server.url + path, headers=headers, timeout=LIMIT_S, **given)


def metrics(server: Server) -> dict[str, float]:
    """Sums by name, and by name and `outcome` or `process`."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(send(server, "GET", "/metrics", "scrape").text):
        for sample in family.samples:
            labels = [sample.labels[name] for name in ("outcome", "process") if name in sample.labels]
            for name in {sample.name, " ".join([sample.name, *labels])}:
                found[name] = found.get(name, 0) + sample.value
    return found


def test_every_front_end_works_and_all_are_counted_together(server: Server) -> None:
    before, frontends = metrics(server), frontends_of(server)
    assert len(frontends) == NUM_FRONTENDS

    def ask(_: object) -> int:
        return send(server, "POST", CHAT, json=ASK).json()["usage"]["completion_tokens"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))
    for frontend in frontends:  # the kernel shares connections out as it likes: each is asked alone as well
        with standing_still(*(other.pid for other in frontends if other != frontend)):
            answers.append(ask(frontend))
    num_asked, tokens = len(answers), sum(answers)
    after, num_read = before, 0

    def rise(name: str) -> float:
        return after[name] - before.get(name, 0)

    def all_are_counted() -> bool:
        """One may not have come round to it when its client has read the answer."""
        nonlocal after, num_read
        after, num_read = metrics(server), num_read + 1
        return rise("vl2_requests_total ok") == num_asked + num_read and after["vl2_requests_in_flight"] == 1

    wait_until(all_are_counted)
    assert tokens == 3 * num_asked
    assert rise("vl2_generated_tokens_total") == rise("vl2_engine_generated_tokens_total") == tokens
    assert rise("vl2_time_to_first_token_seconds_count") == num_asked
    assert after["vl2_ready"] == 1
    for idx in range(NUM_FRONTENDS):
        assert after[f"vl2_server_resident_memory_bytes front-end {idx}"] > 10**7


def test_a_stream_is_whole(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="free", max_retries=0)
    stream = client.chat.completions.create(
        model="default", messages=ASK["messages"], max_tokens=30, stream=True, stop=["e"],
        extra_body={"ignore_eos": True}, stream_options={"include_usage": True},
    )  # fmt: skip
    *chunks, last = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert "e" not in text and chunks[-1].choices[0].finish_reason == "stop" and last.usage.completion_tokens > 0
    wait_until(lambda: metrics(server).get("vl2_engine_running_sequences") == 0)


def test_what_one_front_end_keeps_all_of_them_have(server: Server) -> None:
    """Responses, for as many connections as it takes to meet every front-end."""
    first = send(server, "POST", "/v1/responses", json={"input": "Hello", "max_output_tokens": 2}).json()
    for idx in range(8):
        assert send(server, "GET", f"/v1/responses/{first['id']}").json() == first
        body = {
            "input": f"And {idx}?",
            "previous_response_id": first["id"],
            "max_output_tokens": 2,
            "stream": idx % 2 == 0,
        }
        answer = send(server, "POST", "/v1/responses", json=body)
        assert answer.status_code == 200
        again = (
            json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: ")) if body["stream"] else answer.json()
        )
        kept = again["response"] if body["stream"] else again
        assert send(server, "GET", f"/v1/responses/{kept['id']}").json()["previous_response_id"] == first["id"]
    assert send(server, "GET", f"/v1/responses/{first['id']}", "one").status_code == 404, "another tenant's"
    assert send(server, "DELETE", f"/v1/responses/{first['id']}").status_code == 200
    assert {send(server, "GET", f"/v1/responses/{first['id']}").status_code for _ in range(8)} == {404}


def test_files_and_batches_are_one_server_s(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="free", max_retries=0)
    lines = [
        json.dumps({"custom_id": f"q{idx}", "method": "POST", "url": CHAT, "body": ASK}).encode() for idx in range(12)
    ]
    file = client.files.create(file=("in.jsonl", b"\n".join(lines)), purpose="batch")
    assert all(send(server, "GET", f"/v1/files/{file.id}/content").content == b"\n".join(lines) for _ in range(6))
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    wait_until(lambda: client.batches.retrieve(batch.id).status == "completed")
    output = client.batches.retrieve(batch.id).output_file_id
    assert output is not None and len(client.files.content(output).text.splitlines()) == 12
    picture = client.files.create(file=("scene.png", SCENE.read_bytes()), purpose="vision")
    for _ in range(4):
        part = {"type": "input_image", "file_id": picture.id}
        body = {"input": [{"role": "user", "content": [part]}], "max_output_tokens": 2}
        assert send(server, "POST", "/v1/responses", json=body).json()["usage"]["input_tokens"] > 100


SCENE = Path(__file__).parents[2] / "docs/images/scene.png"


def test_a_key_s_limits_hold_over_all_front_ends(server: Server) -> None:
    started_s = time.monotonic()
    statuses = [send(server, "GET", "/v1/models", "few").status_code for _ in range(12)]
    num_more = (time.monotonic() - started_s) / 15  # four a minute
    assert statuses[:4] == [200] * 4 and 429 in statuses and statuses.count(200) <= 4 + num_more, statuses
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        with standing_still(server.engine_pid):  # the one that is let in stays under way
            asking = [pool.submit(send, server, "POST", CHAT, "one", json=ASK) for _ in range(6)]
            wait_until(lambda: sum(future.done() for future in asking) == 5)
        together = sorted(future.result().status_code for future in asking)
    assert together == [200] + [429] * 5
    for _ in range(10):
        assert send(server, "POST", CHAT, "one", json=ASK).status_code == 200, "it is given back with the answer"


def test_a_front_end_that_dies_takes_only_its_own_answers_with_it(server: Server) -> None:
    long = ASK | {"max_tokens": 4000, "stream": True}
    before = metrics(server)
    headers = {"Authorization": "Bearer one"}
    with httpx.stream("POST", server.url + CHAT, json=long, headers=headers, timeout=LIMIT_S) as stream:
        lines = stream.iter_lines()
        next(lines)
        with standing_still(server.engine_pid):  # the answer is not over yet
            [owner] = [p for p in frontends_of(server) if _serves(p, stream)]
            os.kill(owner.pid, signal.SIGKILL)
            with pytest.raises(httpx.HTTPError):
                list(lines)
    wait_until(lambda: metrics(server).get("vl2_engine_running_sequences") == 0)
    wait_until(lambda: send(server, "POST", CHAT, "one", json=ASK).status_code == 200)
    wait_until(lambda: len(frontends_of(server)) == NUM_FRONTENDS)
    assert metrics(server)["vl2_generated_tokens_total"] > before["vl2_generated_tokens_total"], "none is forgotten"


def _serves(process: psutil.Process, stream: httpx.Response) -> bool:
    port = stream.extensions["network_stream"].get_extra_info("client_addr")[1]
    return any(c.raddr and c.raddr.port == port for c in process.net_connections())


def test_told_to_stop_it_ends_what_runs_and_leaves_nothing(keys: Path) -> None:
    with serving("nano", *FLAGS, "--keys-file", str(keys), "--drain-timeout-s", str(LIMIT_S)) as server:
        family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        headers = {"Authorization": "Bearer free"}
        long = ASK | {"max_tokens": 500, "stream": True}
        with httpx.stream("POST", server.url + CHAT, json=long, headers=headers, timeout=LIMIT_S) as stream:
            lines = stream.iter_lines()
            next(lines)
            with standing_still(server.engine_pid):
                server.process.send_signal(signal.SIGTERM)
                wait_until(lambda: len(frontends_of(server)) <= 1)  # those that have nothing to do end
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.process.wait(LIMIT_S) == 0
    assert all(is_gone(process) for process in family)


def test_a_hub_that_is_killed_takes_everything_with_it(keys: Path) -> None:
    with serving("nano", *FLAGS, "--keys-file", str(keys)) as server:
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert len(children) == NUM_FRONTENDS + 1
        server.process.kill()
        for child in children:
            wait_until(lambda child=child: is_gone(child))
