"""Engines that hang, engines that are lost for good, servers that are told to stop or are killed."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import openai
import psutil
import pytest

from golden_cases import load_variant
from tests.e2e.server_process import LIMIT_S, Server, is_gone, serving, standing_still, wait_until
from vl2 import LLM, SamplingParams
from vl2.core.config import EngineConfig
from vl2.core.errors import InvalidRequest, SetupError

VARIANT = load_variant("mla-greedy")
FLAGS = ("--device", "cpu", "--dtype", "float32")
SHORT = SamplingParams(max_tokens=4)
HELLO = [{"role": "user", "content": "Hello."}]


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """For TMPDIR, so that other servers' folders are not seen; a socket's path must be short."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def sockets(temporary: Path) -> list[Path]:
    return list(temporary.glob("vl2-*/engine"))


def test_a_hung_engine_is_noticed_and_replaced():
    with serving(VARIANT.folder, *FLAGS, "--engine-timeout-s", "3") as server:
        client = client_of(server)
        ask = partial(client.chat.completions.create, model="default", messages=HELLO, max_tokens=2)
        assert ask().choices  # connected: the next question is there long before the engine counts as hung
        with (
            standing_still(server.engine_pid),
            pytest.raises(openai.InternalServerError, match="hung while it worked on this request"),
        ):
            ask()
        assert server.status("/health/ready") == 503
        wait_until(lambda: server.status("/health/ready") == 200)
        assert ask().choices


def test_when_the_engine_cannot_be_started_again_the_server_ends_with_code_1(tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(VARIANT.folder, folder)
    with serving(folder, *FLAGS) as server:
        (folder / "config.json").unlink()
        os.kill(server.engine_pid, signal.SIGKILL)
        assert server.process.wait(LIMIT_S) == 1


def test_sigterm_ends_an_idle_server_without_waiting_for_its_time_to_drain_and_leaves_nothing(temporary: Path):
    drain_s = 10 * LIMIT_S
    with serving(VARIANT.folder, *FLAGS, "--drain-timeout-s", str(drain_s), TMPDIR=str(temporary)) as server:
        (socket,) = sockets(temporary)
        assert socket.parent.stat().st_mode & 0o777 == 0o700, "nobody else on this machine may talk to the engine"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(LIMIT_S) == 0
    assert list(temporary.iterdir()) == []


def test_a_killed_server_leaves_neither_an_engine_nor_its_socket(temporary: Path):
    with serving(VARIANT.folder, *FLAGS, TMPDIR=str(temporary)) as server:
        engine = psutil.Process(server.engine_pid)
        mine = sockets(temporary)
        server.process.kill()
        wait_until(lambda: is_gone(engine))
    assert mine and not any(file.parent.exists() for file in mine)


def test_what_python_users_write_wrong_is_told_before_anything_loads():
    with pytest.raises(SetupError, match="--max-context-tokens is 9999, but this model was trained for"):
        LLM(str(VARIANT.folder), engine=EngineConfig(max_context_tokens=9999))
    with pytest.raises(SetupError, match="--threads is 0, but must be between"):
        LLM(str(VARIANT.folder), engine=EngineConfig(threads=0))


def test_a_plain_text_and_dicts_can_be_asked():
    with LLM(str(VARIANT.folder), engine=EngineConfig(device="cpu", dtype="float32", threads=1)) as llm:
        assert llm.chat("Hello.", SHORT) == llm.chat([{"role": "user", "content": "Hello."}], SHORT)
        with pytest.raises(InvalidRequest, match="must be a text or a list"):
            llm.chat([("user", "Hello.")])  # type: ignore[list-item]
