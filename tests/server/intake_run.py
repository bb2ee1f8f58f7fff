"""Pictures, PDFs, JSON and base64 by hypothesis, through the real processor: `python tests/server/intake_run.py`.

A file is a sound one, changed in up to four places. Everything is either taken or refused by a RequestError; what is
not is made as small as it gets. Prints the memory of this process after a tenth of the inputs and at the end.
"""

from __future__ import annotations

import base64
import gc
import io
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from vl2.core.config import ProcessorConfig, ServerConfig
from vl2.core.errors import RequestError
from vl2.processing.images import open_image
from vl2.processing.isolated import POOL, render_pdf
from vl2.server.fetch import decode_base64, decode_data_url
from vl2.server.intake import parse_json

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PDF")
SHARES = {"picture": 8, "pdf": 1, "json": 5, "base64": 6}
BLOCK = 1000  # inputs of one run of hypothesis, which remembers them all
LIMITS = ProcessorConfig(decode_timeout_s=60.0, max_image_pixels=4_000_000)
DEPTH, VALUES = ServerConfig().max_json_depth, ServerConfig().max_json_values


def sound_files() -> dict[str, list[bytes]]:
    """Sound files of every format and a few modes."""
    rng, found = random.Random(0), dict[str, list[bytes]]()
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


FILES = sound_files()
BODY = json.dumps(
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a\n\u00e9"}]}], "n": 1.5}
).encode()

changes = st.tuples(
    st.sampled_from(("set", "cut", "double", "fill", "end")),
    st.integers(0, 2**16),
    st.sampled_from((1, 2, 4, 16, 64)),
    st.binary(min_size=1, max_size=64),
)


def changed(data: bytes, places: list[tuple[str, int, int, bytes]]) -> bytes:
    """Bytes set, a piece cut, doubled or filled with one byte, an end lost."""
    mutable = bytearray(data)
    for what, place, length, other in places:
        at = place % (len(mutable) + 1)
        if what == "set":
            mutable[at : at + len(other)] = other
        elif what == "cut":
            del mutable[at : at + length]
        elif what == "double":
            mutable[at:at] = mutable[at : at + length]
        elif what == "fill":
            mutable[at : at + length] = other[:1] * length
        else:
            del mutable[at:]
    return bytes(mutable)


def some(files: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(changed, st.sampled_from(files), st.lists(changes, max_size=4))


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=9) | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)
STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "picture": some([file for name in FORMATS[:-1] for file in FILES[name]]),
    "pdf": st.tuples(some(FILES["PDF"]), st.sampled_from((None, "1", "1-", "2"))),
    "json": some([BODY, BODY * 50]) | values.map(lambda value: json.dumps(value).encode()),
    "base64": st.tuples(
        st.booleans(), st.builds(changed, st.binary().map(base64.b64encode), st.lists(changes, max_size=4))
    ),
}
inputs = st.sampled_from([kind for kind, share in SHARES.items() for _ in range(share)]).flatmap(
    lambda kind: st.tuples(st.just(kind), STRATEGIES[kind])
)


def take(kind: str, given_: Any) -> None:
    """Raises: RequestError."""
    if kind == "picture":
        open_image(given_, LIMITS)
    elif kind == "pdf":
        render_pdf(*given_, LIMITS)
    elif kind == "json":
        parse_json(given_, DEPTH, VALUES)
    else:
        is_url, text = given_[0], given_[1].decode("latin-1")
        decode_data_url("data:image/png;base64," + text) if is_url else decode_base64(text)


def block(number: int, num_inputs: int, counts: Counter[str]) -> None:
    @seed(number)
    @settings(
        max_examples=num_inputs,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def each(drawn: tuple[str, Any]) -> None:
        try:
            take(*drawn)
            counts[f"{drawn[0]} taken"] += 1
        except RequestError:
            counts[f"{drawn[0]} refused"] += 1

    each()


def resident_bytes() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def run(num_inputs: int) -> dict[str, Any]:
    counts, early_bytes, started_s = Counter[str](), 0, time.monotonic()
    num_killed = POOL.num_killed
    for done in range(0, num_inputs, BLOCK):
        block(done, min(BLOCK, num_inputs - done), counts)
        if done + BLOCK <= max(BLOCK, num_inputs // 10):
            early_bytes = resident_bytes()
    return {
        "inputs": sum(counts.values()),
        **dict(sorted(counts.items())),
        "decoders_killed": POOL.num_killed - num_killed,
        "rss_growth": resident_bytes() / early_bytes - 1,
        "seconds": round(time.monotonic() - started_s, 1),
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000), indent=1))
