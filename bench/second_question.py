"""Through `vl2 serve`: time to the first token of a first and of a second question about a picture, prefix cache off.

    python bench/second_question.py [--pairs 15] [MODEL]

Pairs are asked one after the other, each about a picture of its own; medians. A picture comes as a data URL, as the
page and most clients send it.
"""

from __future__ import annotations

import http.client
import json
import statistics
import time
from typing import Any

import click
from common import report
from serving import picture_url, serving

SIZES = ((384, 384), (1152, 768))
FORMATS = ("PNG", "JPEG")
NUM_WARM_UP = 3


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
    results: dict[str, Any] = {}
    with serving(model, "--no-prefix-cache") as port:
        for image_format in FORMATS:
            for width, height in SIZES:
                first, second = [], []
                for seed in range(pairs + NUM_WARM_UP):
                    url = picture_url(width, height, seed, image_format)
                    first.append(first_token_s(port, url, "What is in the picture?"))
                    second.append(first_token_s(port, url, "Which colours has it?"))
                ratios = [b / a for a, b in zip(first, second, strict=True)][NUM_WARM_UP:]
                name = f"{width} × {height} {image_format}"
                results[f"{name}: first question, ms"] = 1000 * statistics.median(first[NUM_WARM_UP:])
                results[f"{name}: second question, ms"] = 1000 * statistics.median(second[NUM_WARM_UP:])
                results[f"{name}: second over first"] = statistics.median(ratios)
    report("second question", results)


if __name__ == "__main__":
    main()
