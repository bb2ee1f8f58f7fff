"""A batch of 500 lines survives the death of the whole server."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import openai
import psutil

from e2e.server_process import Server, serving, standing_still, wait_until

NUM_LINES = 500
ENDPOINT = "/v1/chat/completions"


def line(idx: int) -> str:
    body = {"messages": [{"role": "user", "content": f"Question {idx}"}], "max_tokens": 2}
    return json.dumps({"custom_id": f"q{idx}", "method": "POST", "url": ENDPOINT, "body": body})


def kill_all(server: Server) -> None:
    """As a power cut: no process of the server has time for anything."""
    parent = psutil.Process(server.process.pid)
    for process in [parent, *parent.children(recursive=True)]:
        process.kill()
    server.process.wait()


def test_after_kill_9_every_line_has_exactly_one_result(tmp_path: Path) -> None:
    flags = ("--state-dir", str(tmp_path / "state"), "--node-name", "n1", "--log-level", "warning")
    with serving("nano", *flags) as server:
        api = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        file = api.files.create(file=("in.jsonl", "\n".join(map(line, range(NUM_LINES))).encode()), purpose="batch")
        batch = api.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")

        def num_done() -> int:
            counts = api.batches.retrieve(batch.id).request_counts
            assert counts is not None
            return counts.completed

        wait_until(lambda: num_done() > 100)
        with standing_still(*server.engine_pids):
            assert num_done() < NUM_LINES
            kill_all(server)
    with serving("nano", *flags) as server:
        api = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
        wait_until(lambda: api.batches.retrieve(batch.id).status == "completed")  # by itself
        done = api.batches.retrieve(batch.id)
        assert done.output_file_id is not None and done.error_file_id is None
        results = [json.loads(text) for text in api.files.content(done.output_file_id).text.splitlines()]
    assert Counter(entry["custom_id"] for entry in results) == {f"q{idx}": 1 for idx in range(NUM_LINES)}
    assert all(entry["response"]["status_code"] == 200 for entry in results)
