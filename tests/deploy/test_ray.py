"""Ray Serve: options arrive as they were meant, and two real replicas stream and outlive each other."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml

from tests.deploy.load import CHAT, QUESTION, Load
from tests.e2e.server_process import LIMIT_S, wait_until
from tests.ports import free_port
from vl2.cli import execute
from vl2.core.errors import SetupError
from vl2.deploy.ray_options import read_settings

OPEN = {"allow_without_keys": True}


def test_texts_of_the_command_line_become_the_options_types() -> None:
    settings = read_settings(
        {"model": "tiny", "max_sequences": "8", "num_gpus": "0.5", "offline": "true", "api_key": "a b"}
    )
    assert settings.ray.model == "tiny" and settings.ray.num_gpus == 0.5
    assert settings.engine.max_sequences == 8 and settings.hub.offline
    assert [key.reveal() for key in settings.server.api_key] == ["a", "b"]
    assert "a" not in str(settings.server.api_key[0])


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ({}, "there are no keys"),
        ({**OPEN, "max_sequence": 4}, "did you mean max_sequences"),
        ({**OPEN, "max_sequences": "many"}, "max_sequences is 'many', but must be a int"),
        ({**OPEN, "max_sequences": 0}, "must be between 1 and 4096"),
        ({**OPEN, "offline": "maybe"}, "offline is 'maybe'"),
        ({**OPEN, "min_replicas": 3, "max_replicas": 2}, "at least min_replicas 3"),
        ({**OPEN, "state_dir": "/state"}, "one server that keeps them"),
    ],
)
def test_wrong_arguments_are_told(args: dict[str, Any], problem: str) -> None:
    with pytest.raises(SetupError, match=problem):
        read_settings(args)


def test_what_the_command_writes_is_taken(tmp_path: Path) -> None:
    flags = ["--model", "small", "--min-replicas", "2", "--max-replicas", "8", "--hub", "modelscope"]
    assert execute(["deploy", "ray", "--out", str(tmp_path), *flags]) == 0
    [application] = yaml.safe_load((tmp_path / "serve.yaml").read_text())["applications"]
    settings = read_settings(application["args"])
    assert (settings.ray.model, settings.ray.max_replicas, settings.hub.hub) == ("small", 8, "modelscope")
    module, _, name = application["import_path"].partition(":")
    assert module == "vl2.deploy.ray" and name == "app"
    assert execute(["deploy", "ray", "--out", str(tmp_path / "x"), "--max-replicas", "1", "--min-replicas", "2"]) == 2


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    if "VL2_TEST_DEPLOY" not in os.environ:
        pytest.skip("starts a Ray cluster: make test-deploy")
    port = free_port()
    command = [sys.executable, "-m", "tests.deploy.ray_cluster", str(port)]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, env=environment)
    assert process.stdout is not None and process.stdin is not None
    try:
        assert any(line.strip() == b"ready" for line in process.stdout), "the cluster did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        process.wait(60)


def replica_pids() -> list[int]:
    """Of Ray's actors, by the title that Ray gives them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or ())
        if title.startswith("ray::ServeReplica:vl2"):
            found.append(process.pid)
    return found


def test_the_openai_client_streams_from_a_replica(address: str) -> None:
    client = openai.OpenAI(base_url=address + "/v1", api_key="none", max_retries=0)
    chunks = list(client.chat.completions.create(model="default", messages=QUESTION, stream=True))  # type: ignore[call-overload]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "vl2-nano" in text and len(chunks) > 5
    body = {"model": "default", "messages": QUESTION, "max_tokens": 100, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", address + CHAT, json=body, timeout=60) as response:
        assert sum(1 for _ in response.iter_raw()) > 20, "events come by themselves"


async def test_when_a_replica_is_killed_nothing_hangs_and_the_other_answers(address: str) -> None:
    before = replica_pids()
    assert len(before) == 2
    load = Load(address, 12, num_requests=12, max_tokens=1500, is_stream=lambda number: True)
    load.stop()
    running = asyncio.create_task(load.run())
    await asyncio.to_thread(wait_until, lambda: load.num_begun == 12)
    os.kill(before[0], signal.SIGKILL)
    await asyncio.wait_for(running, LIMIT_S)
    cut = [outcome for outcome in load.outcomes if outcome.problem]
    assert 1 <= len(cut) < 12
    after = Load(address, 4, num_requests=20, max_tokens=8)
    after.stop()
    await asyncio.wait_for(after.run(), LIMIT_S)
    assert after.problems == []
    await asyncio.to_thread(wait_until, lambda: len(set(replica_pids()) - {before[0]}) == 2)
