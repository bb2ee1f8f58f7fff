"""vl2 serve as a process: the ready line, signals, and every way in which it cannot start."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, sys
import vl2.cli, vl2.cli.model
from tests.fakes import FakeModel, answer
from vl2.core.errors import SetupError

class SlowModel(FakeModel):
    async def stream(self, messages, params, *, options=None, request_id=None):
        for delta in answer("slow but sure"):
            await asyncio.sleep(0.1)
            yield delta

class LostModel(FakeModel):
    async def wait_failed(self):
        await asyncio.sleep(0.1)
        self.is_ready, self.is_failed = False, True
        return "it died: signal 9"

MODELS = {
    "nano": SlowModel, "lost": LostModel,
    "broken": lambda name: FakeModel(is_ready=False, setup_error=SetupError("shard 2 is cut")),
}
vl2.cli.model.open_model = lambda name, **_: MODELS[name](name=name)
vl2.cli.main(sys.argv[1:])
"""

Serve = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[subprocess.Popen[str]] = []

    def start(*args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, "serve", *args]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    words = process.stdout.readline().split()  # vl2: nano answers at URL (page), URL/v1 (OpenAI API)
    assert words[:4] == ["vl2:", "nano", "answers", "at"], words
    return words[4]


def test_one_line_says_where_it_answers_and_sigterm_ends_it(serve: Serve) -> None:
    process = serve("--port", "0")
    assert httpx.get(url_of(process) + "/health/ready").status_code == 200
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stdout) == (0, "")
    assert "Traceback" not in stderr


def test_a_running_request_ends_before_the_process_does(serve: Serve) -> None:
    process = serve("--port", "0")
    url, answers = url_of(process), []
    body = {"model": "nano", "messages": [{"role": "user", "content": "Go on"}], "stream": True}

    def ask() -> None:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if not answers:
                    process.send_signal(signal.SIGTERM)
                answers.append(line)

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(timeout=10)
    assert "data: [DONE]" in answers
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_a_port_in_use_is_one_line_and_code_2(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = serve("--port", str(port), "--log-level", "error")
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 2
    assert stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another")


def test_a_model_that_cannot_start_is_code_2(serve: Serve) -> None:
    process = serve("broken", "--port", "0")
    stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stdout) == (2, "")
    assert stderr.endswith("error: shard 2 is cut\n")


def test_an_engine_that_cannot_be_started_again_ends_the_server_with_code_1(serve: Serve) -> None:
    process = serve("lost", "--port", "0")
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 1
    assert stderr.endswith("error: the engine died and could not be started again: it died: signal 9\n")


def test_an_image_folder_that_is_not_there_is_one_line_and_code_2(serve: Serve) -> None:
    process = serve("--port", "0", "--allowed-image-folder", "/no/such/folder")
    _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr.count("\n")) == (2, 1)
    assert stderr.startswith("error: --allowed-image-folder is /no/such/folder")


@pytest.mark.parametrize(("host", "port"), [("nowhere.invalid", "8000"), ("192.0.2.1", "0")])
def test_an_impossible_address_is_one_line_and_code_2(serve: Serve, host: str, port: str) -> None:
    process = serve("--host", host, "--port", port, "--log-level", "error")
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 2
    assert stderr.startswith(f"error: cannot listen on {host}:{port}: ")
    assert stderr.count("\n") == 1
