"""Mutated pictures, PDFs, JSON and base64 through the real processor: `python tests/server/intake_run.py [INPUTS]`.

Everything is either taken or refused by a RequestError. Prints the memory of this process after a tenth of the inputs
and at the end.
"""

from __future__ import annotations

import base64
import io
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import psutil
from PIL import Image

from vl2.core.config import ProcessorConfig, ServerConfig
from vl2.core.errors import RequestError
from vl2.processing.images import open_image
from vl2.processing.isolated import POOL, render_pdf
from vl2.server.fetch import decode_base64, decode_data_url
from vl2.server.intake import parse_json

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PDF")
SHARES = {"picture": 8, "pdf": 1, "json": 5, "base64": 6}
LIMITS = ProcessorConfig(decode_timeout_s=5.0, max_image_pixels=4_000_000)
DEPTH, VALUES = ServerConfig().max_json_depth, ServerConfig().max_json_values


def seeds(rng: random.Random) -> dict[str, list[bytes]]:
    """Sound files of every format and a few modes."""
    found: dict[str, list[bytes]] = {}
    for name in FORMATS:
        for mode in ("RGB", "L", "P", "1", "RGBA", "CMYK", "I;16"):
            pixels = rng.randbytes(24 * 18 * 4)
            image = Image.frombytes("RGBA", (24, 18), pixels).convert("L" if mode == "I;16" else mode)
            stream = io.BytesIO()
            try:
                (image.convert(mode) if mode == "I;16" else image).save(stream, name)
            except (OSError, ValueError, KeyError):
                continue  # a format that has no such mode
            found.setdefault(name, []).append(stream.getvalue())
    return found


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four of: bytes changed, a piece cut, doubled or moved, an end lost."""
    mutable = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(mutable) + 1), rng.choice((1, 2, 4, 16, 64))
        match rng.randrange(5):
            case 0:
                mutable[at : at + length] = rng.randbytes(len(mutable[at : at + length]))
            case 1:
                del mutable[at : at + length]
            case 2:
                mutable[at:at] = mutable[at : at + length]
            case 3:
                mutable[at : at + length] = bytes([rng.choice((0, 255, 127, 128))]) * length
            case _:
                del mutable[at:]
        if not mutable:
            return b""
    return bytes(mutable)


def one(kind: str, files: dict[str, list[bytes]], rng: random.Random) -> None:
    if kind == "picture":
        open_image(mutated(rng.choice(files[rng.choice(FORMATS[:-1])]), rng), LIMITS)
    elif kind == "pdf":
        render_pdf(mutated(rng.choice(files["PDF"]), rng), rng.choice((None, "1", "1-", "2")), LIMITS)
    elif kind == "json":
        text = json.dumps(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a\n\u00e9"}]}], "n": 1.5}
        )
        parse_json(mutated(text.encode() * rng.choice((1, 1, 50)), rng), DEPTH, VALUES)
    else:
        text = base64.b64encode(rng.randbytes(rng.randrange(200))).decode()
        mangled = mutated(text.encode() or b"A", rng).decode("latin-1")
        decode_data_url("data:image/png;base64," + mangled) if rng.random() < 0.5 else decode_base64(mangled)


def run(num_inputs: int, seed: int = 0) -> dict[str, Any]:
    rng, counts = random.Random(seed), Counter[str]()
    files = seeds(rng)
    kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
    process, early_bytes, started_s = psutil.Process(), 0, time.monotonic()
    num_killed = POOL.num_killed
    for idx in range(num_inputs):
        kind = rng.choice(kinds)
        try:
            one(kind, files, rng)
            counts[f"{kind} taken"] += 1
        except RequestError:
            counts[f"{kind} refused"] += 1
        if idx == num_inputs // 10:
            early_bytes = process.memory_info().rss
    return {
        "inputs": num_inputs,
        **dict(sorted(counts.items())),
        "decoders_killed": POOL.num_killed - num_killed,
        "rss_growth": process.memory_info().rss / early_bytes - 1,
        "seconds": round(time.monotonic() - started_s, 1),
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000), indent=1))
