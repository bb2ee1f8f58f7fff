"""Two engines behind one server: who gets what, and what the others notice when one is killed."""

import asyncio
import concurrent.futures
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import openai
import pytest
import torch

from golden_cases import GOLDEN_ROOT, load_variant
from tests.e2e.server_process import LIMIT_S, Server, serving, standing_still, wait_until
from tests.e2e.test_serve import ask, data_url
from vl2 import LLM, SamplingParams
from vl2.core.config import EngineConfig
from vl2.core.types import fold_deltas

VARIANT = load_variant("mla-greedy")
PICTURES = [GOLDEN_ROOT / "images/g76" / name for name in ("square.png", "landscape.png", "two_a.png", "two_b.png")]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(VARIANT.folder, "--device", "cpu", "--dtype", "float32", "--replicas", "2") as server:
        yield server


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def by_replica(server: Server, name: str) -> list[float | None]:
    """An engine metric, of replica 0 and 1; None where the replica is down."""
    text = httpx.get(server.url + "/metrics", timeout=LIMIT_S).text
    found = dict(re.findall(rf'^vl2_engine_{name}{{[^}}]*replica="(\d)"[^}}]*}} (\S+)$', text, re.MULTILINE))
    return [float(found[idx]) if idx in found else None for idx in "01"]


def about(picture, question: str) -> list[dict]:
    part = {"type": "image_url", "image_url": {"url": data_url(picture)}}
    return [{"role": "user", "content": [part, {"type": "text", "text": question}]}]


def test_a_picture_is_encoded_by_one_replica_and_asked_about_there(server: Server, client: openai.OpenAI):
    for picture in PICTURES:
        ask(client, about(picture, "What is this?"), max_tokens=2)
    encoded = by_replica(server, "tiles_encoded_total")
    assert all(encoded), "the pictures were shared out"
    for question in ("What colour is it?", "Where does it stand?"):
        for picture in PICTURES:
            ask(client, about(picture, question), max_tokens=2)
    assert by_replica(server, "tiles_encoded_total") == encoded, "no picture was encoded twice"


def test_when_one_replica_is_killed_the_other_answers_until_it_is_back(server: Server, client: openai.OpenAI):
    assert by_replica(server, "ready") == [1, 1]
    os.kill(server.engine_pid, signal.SIGKILL)
    wait_until(lambda: sum(by_replica(server, "ready")) == 1)
    while by_replica(server, "ready") != [1, 1]:
        assert server.status("/health/ready") == 200
        for picture in PICTURES:
            assert ask(client, about(picture, "What is this?"), max_tokens=2).choices
    assert sum(by_replica(server, "restarts_total")) == 1
    assert len(server.engine_pids) == 2


def test_a_request_without_a_token_moves_when_its_replica_is_killed(server: Server, client: openai.OpenAI):
    """A stopped process answers nothing: of two requests, which are shared out, one is stuck in it at the killing."""
    pid = server.engine_pid
    messages = [{"role": "user", "content": "Hello."}]
    with concurrent.futures.ThreadPoolExecutor(2) as pool, standing_still(pid):
        answers = [pool.submit(ask, client, messages, max_tokens=2) for _ in range(2)]
        concurrent.futures.wait(answers, return_when=concurrent.futures.FIRST_COMPLETED)
        assert sum(answer.done() for answer in answers) == 1
        os.kill(pid, signal.SIGKILL)
        assert all(answer.result().choices for answer in answers)
    wait_until(lambda: by_replica(server, "ready") == [1, 1])


async def test_replicas_as_threads_of_one_process_answer_the_same():
    case = VARIANT.case("text")
    params = SamplingParams(max_tokens=16, ignore_eos=True)
    llm = LLM(str(VARIANT.folder), engine=EngineConfig(device="cpu", dtype="float32", replicas=2))

    async def answer() -> list[int]:
        deltas = [delta async for delta in llm.stream(case.messages, params)]
        return list(fold_deltas(deltas).choices[0].token_ids)

    await llm.start()
    try:
        assert await asyncio.gather(answer(), answer()) == [case.greedy_tokens] * 2
        assert [replica.stats.generated_tokens_total for replica in await llm.replica_stats()] == [16, 16]
        assert (await llm.stats()).generated_tokens_total == 32
    finally:
        await llm.stop()


def test_too_few_gpus_are_one_line_and_exit_code_2():
    flags = ["--port", "0", "--device", "cuda", "--replicas", str(torch.cuda.device_count() + 2)]
    command = [sys.executable, "-m", "vl2", "serve", str(VARIANT.folder), *flags]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert result.returncode == 2
    [line] = [line for line in result.stderr.splitlines() if not re.match(r"\d{4}-", line)]  # beside the log
    assert "GPU" in line
