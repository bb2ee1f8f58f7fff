"""Through `vl2 serve`: time to the first token of a first and of a second question about a picture, prefix cache off.

    python bench/second_question.py [--pairs 15] [MODEL]

Pairs are asked one after the other, each about a picture of its own; medians. A picture comes as a data URL, as the
page and most clients send it.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import statistics
import subprocess
import sys
import time
from typing import Any

import click
import numpy as np
from common import report
from PIL import Image

SIZES = ((384, 384), (1152, 768))
FORMATS = ("PNG", "JPEG")
NUM_WARM_UP = 3


def picture(width: int, height: int, seed: int, image_format: str) -> str:
    """A data URL: soft colours with some grain, about as hard to compress as a photograph."""
    dice = np.random.default_rng(seed)
    soft = Image.fromarray(dice.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    pixels = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels += dice.integers(-6, 7, (height, width, 1), dtype=np.int16)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, image_format)
    return f"data:image/{image_format.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def first_token_s(port: int, url: str, question: str) -> float:
    """On a new connection, until the first piece of text has arrived."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    wanted = {"messages": [{"role": "user", "content": content}], "max_tokens": 1, "stream": True, "seed": 1}
    body = json.dumps(wanted | {"ignore_eos": True})
    connection = http.client.HTTPConnection("127.0.0.1", port)
    started_s = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    first_s = None
    for line in response:
        if line.startswith(b"data: {"):
            delta = json.loads(line[6:])["choices"][0]["delta"]
            if "content" in delta and (delta["content"] or "role" not in delta):
                first_s = first_s or time.perf_counter() - started_s
    connection.close()
    assert first_s is not None
    return first_s


@click.command()
@click.option("--pairs", default=15, show_default=True)
@click.argument("model", default="nano")
def main(pairs: int, model: str) -> None:
    command = [
        sys.executable,
        "-m",
        "vl2",
        "serve",
        model,
        "--port",
        "0",
        "--no-prefix-cache",
        "--log-level",
        "warning",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    results: dict[str, Any] = {}
    try:
        assert server.stdout is not None
        port = int(re.search(r":(\d+)", server.stdout.readline())[1])  # type: ignore[index]
        for image_format in FORMATS:
            for width, height in SIZES:
                first, second = [], []
                for seed in range(pairs + NUM_WARM_UP):
                    url = picture(width, height, seed, image_format)
                    first.append(first_token_s(port, url, "What is in the picture?"))
                    second.append(first_token_s(port, url, "Which colours has it?"))
                ratios = [b / a for a, b in zip(first, second, strict=True)][NUM_WARM_UP:]
                name = f"{width} × {height} {image_format}"
                results[f"{name}: first question, ms"] = 1000 * statistics.median(first[NUM_WARM_UP:])
                results[f"{name}: second question, ms"] = 1000 * statistics.median(second[NUM_WARM_UP:])
                results[f"{name}: second over first"] = statistics.median(ratios)
    finally:
        server.terminate()
        server.wait(20)
    report("second question", results)


if __name__ == "__main__":
    main()
