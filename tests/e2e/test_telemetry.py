"""A real server tells a collector and its log what it did: the numbers agree with the answer's own."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.collector import collecting
from tests.e2e.server_process import LIMIT_S

SCENE = Path(__file__).parents[2] / "docs/images/scene.png"


def test_spans_and_json_lines_of_a_question_about_a_picture() -> None:
    url = "data:image/png;base64," + base64.b64encode(SCENE.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is in the picture?"}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 6}
    with collecting() as (endpoint, spans):
        command = [sys.executable, "-m", "vl2", "serve", "nano", "--port", "0", "--threads", "1"]
        flags = ["--otlp-endpoint", endpoint, "--log-format", "json"]
        server = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            address = server.stdout.readline().split(" answers at ")[1].split()[0]
            asking = {"url": address + "/v1/chat/completions", "json": body, "headers": {"X-VL2-Timing": "1"}}
            usages = [httpx.post(**asking, timeout=LIMIT_S).json()["usage"] for _ in range(2)]
        finally:
            server.send_signal(signal.SIGTERM)
            _, log = server.communicate(timeout=LIMIT_S)
    lines = [json.loads(line) for line in log.splitlines()]
    assert "vl2.engine.runner" in {line["logger"] for line in lines}, "the engine's process logs likewise"
    told = [line for line in lines if line.get("route") == "/v1/chat/completions"]
    roots = [span for span in spans if not span.parent_id]
    assert [line["trace_id"] for line in told] == [root.trace_id for root in roots] and len(roots) == 2
    for root, usage, line in zip(roots, usages, told, strict=True):
        assert root.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"] == line["prompt_tokens"]
        assert root.attributes["vl2.image_tokens"] == usage["prompt_tokens_details"]["image_tokens"]
        stages = {span.name: span for span in spans if span.parent_id == root.span_id}
        for name in ("queue", "vision", "prefill", "decode"):
            seconds = stages[name].end_s - stages[name].start_s
            assert abs(seconds - usage["timing"][f"{name}_s"]) < 0.002
        # The first token may come late, and the last with it: then decoding seems to end by so much after the request.
        decode_s = usage["timing"]["decode_s"]
        for span in stages.values():
            assert root.start_s - 0.001 <= span.start_s <= span.end_s <= root.end_s + decode_s + 0.001
    hashes = [span.attributes["vl2.picture.hashes"] for span in spans if span.name == "read"]
    assert len(hashes[0]) == 1 and hashes[0] == hashes[1], "the same picture"
