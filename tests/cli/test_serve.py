"""vl2 serve as a process: the ready line, signals, and every way in which it cannot start."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from tests.e2e.server_process import LIMIT_S, wait_until
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, sys
import vl2.cli, vl2.cli.model
from tests.fakes import FakeModel, answer
from vl2.core.errors import SetupError

class PatientModel(FakeModel):
    # in the middle of an answer it waits for a line on the standard input
    async def stream(self, messages, params, *, options=None, request_id=None):
        first, *others = answer("slow but sure")
        yield first
        await asyncio.to_thread(sys.stdin.readline)
        for delta in others:
            yield delta

class LostModel(FakeModel):
    async def wait_failed(self):
        await asyncio.to_thread(sys.stdin.readline)
        self.is_ready, self.is_failed = False, True
        return "it died: signal 9"

class EndlessModel(FakeModel):
    async def stream(self, messages, params, *, options=None, request_id=None):
        while True:
            await asyncio.sleep(0.02)
            yield answer("on")[0]

MODELS = {
    "endless": EndlessModel,
    "nano": PatientModel, "lost": LostModel,
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
        started.append(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def go_on(process: subprocess.Popen[str]) -> None:
    """To `PatientModel`, in the middle of an answer, and to `LostModel`."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def wait_until_draining(url: str) -> None:
    wait_until(lambda: httpx.get(url + "/health/ready", timeout=LIMIT_S).status_code == 503)


def url_of(process: subprocess.Popen[str], name: str = "nano") -> str:
    assert process.stdout is not None
    words = process.stdout.readline().split()  # vl2: nano answers at URL (page), URL/v1 (OpenAI API)
    assert words[:4] == ["vl2:", name, "answers", "at"], words
    return words[4]


def test_one_line_says_where_it_answers_and_sigterm_ends_it(serve: Serve) -> None:
    process = serve("--port", "0")
    assert httpx.get(url_of(process) + "/health/ready").status_code == 200
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, stdout) == (0, "")
    assert "Traceback" not in stderr


def test_a_running_request_ends_before_the_process_does(serve: Serve) -> None:
    process = serve("--port", "0")
    url = url_of(process)
    stream = Stream(url)
    process.send_signal(signal.SIGTERM)
    wait_until_draining(url)
    assert "[DONE]" not in "".join(stream.lines)
    go_on(process)
    assert stream.text().rstrip().endswith("data: [DONE]")
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0


def test_a_port_in_use_is_one_line_and_code_2(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = serve("--port", str(port), "--log-level", "error")
        _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    assert stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another")


def test_a_model_that_cannot_start_is_code_2(serve: Serve) -> None:
    process = serve("broken", "--port", "0")
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, stdout) == (2, "")
    assert stderr.endswith("error: shard 2 is cut\n")


def test_an_engine_that_cannot_be_started_again_ends_the_server_with_code_1(serve: Serve) -> None:
    process = serve("lost", "--port", "0")
    url_of(process, "lost")
    go_on(process)
    _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert stderr.endswith("error: the engine died and could not be started again: it died: signal 9\n")


def test_an_image_folder_that_is_not_there_is_one_line_and_code_2(serve: Serve) -> None:
    process = serve("--port", "0", "--allow-dir", "/no/such/folder")
    _, stderr = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, stderr.count("\n")) == (2, 1)
    assert stderr.startswith("error: --allow-dir is /no/such/folder")


@pytest.mark.parametrize(("host", "port"), [("nowhere.invalid", "8000"), ("192.0.2.1", "0")])
def test_an_impossible_address_is_one_line_and_code_2(serve: Serve, host: str, port: str) -> None:
    process = serve("--host", host, "--port", port, "--log-level", "error", "--allow-without-keys")
    _, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    assert stderr.startswith(f"error: cannot listen on {host}:{port}: ")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_keys_it_does_not_listen_beyond_this_machine(serve: Serve, host: str) -> None:
    process = serve("--host", host, "--port", "0", "--log-level", "error")
    _, stderr = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, stderr.count("\n")) == (2, 1)
    assert "there are no keys; set --api-key or --keys-file, or --allow-without-keys" in stderr


def test_with_a_key_it_does_and_the_log_does_not_show_it(serve: Serve) -> None:
    process = serve("--host", "0.0.0.0", "--port", "0", "--api-key", "hush-hush")
    url = url_of(process)
    assert httpx.get(url + "/v1/models", headers={"Authorization": "Bearer hush-hush"}).status_code == 200
    process.send_signal(signal.SIGTERM)
    assert "hush" not in process.communicate(timeout=LIMIT_S)[1]


class Stream:
    """An answer that is read in a thread; `begun` is set with its first line."""

    def __init__(self, url: str) -> None:
        self.lines: list[str] = []
        self.begun = threading.Event()
        self.thread = threading.Thread(target=self._read, args=(url,))
        self.thread.start()
        assert self.begun.wait(LIMIT_S)

    def _read(self, url: str) -> None:
        body = {"messages": [{"role": "user", "content": "Go on"}], "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=LIMIT_S) as response:
            for line in response.iter_lines():
                self.lines.append(line)
                self.begun.set()

    def text(self) -> str:
        self.thread.join(LIMIT_S)
        return "\n".join(self.lines)


def test_while_it_drains_it_refuses_politely_and_its_streams_end(serve: Serve) -> None:
    process = serve("--port", "0")
    url = url_of(process)
    stream = Stream(url)
    process.send_signal(signal.SIGTERM)
    wait_until_draining(url)
    refused = httpx.post(f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopping")
    assert "nothing new is taken" in refused.json()["error"]["message"]
    assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
    assert httpx.get(url + "/health/live").status_code == 200
    go_on(process)
    assert "sure" in stream.text() and "server_stopping" not in stream.text()
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0


def test_a_second_signal_cuts_what_runs(serve: Serve) -> None:
    process = serve("endless", "--port", "0")
    url = url_of(process, "endless")
    stream = Stream(url)
    process.send_signal(signal.SIGTERM)
    wait_until_draining(url)
    process.send_signal(signal.SIGTERM)
    assert "server_stopping" in stream.text() and "[DONE]" in stream.text()
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130


def test_drain_timeout_ends_what_does_not_end_by_itself(serve: Serve) -> None:
    process = serve("endless", "--port", "0", "--drain-timeout-s", "0.2")
    stream = Stream(url_of(process, "endless"))
    process.send_signal(signal.SIGTERM)
    assert "server_stopping" in stream.text()
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0


def test_it_speaks_https_with_a_certificate(serve: Serve, tmp_path: Path) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made.private_key_pem.write_to_path(key)
    cert.write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
    url = url_of(serve("--port", "0", "--tls-cert", str(cert), "--tls-key", str(key)))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    assert url.startswith("https://127.0.0.1:")
    assert httpx.get(url + "/health/ready", verify=context).status_code == 200


@pytest.mark.parametrize("flags", [["--tls-cert", "x"], ["--tls-cert", "/none", "--tls-key", "/none"]])
def test_half_of_a_certificate_is_one_line_and_code_2(serve: Serve, flags: list[str]) -> None:
    process = serve("--port", "0", *flags)
    _, stderr = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, stderr.count("\n")) == (2, 1)


def test_metrics_move_to_the_admin_port_where_no_key_is_asked_for(serve: Serve) -> None:
    port = free_port()
    url = url_of(serve("--port", "0", "--api-key", "k", "--admin-port", str(port)))
    assert "vl2_requests_total" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert httpx.get(f"http://127.0.0.1:{port}/v1/models").status_code == 404
    assert httpx.get(url + "/metrics", headers={"Authorization": "Bearer k"}).status_code == 404
