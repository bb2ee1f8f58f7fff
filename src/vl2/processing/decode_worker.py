"""The process behind `isolated`: `python -m vl2.processing.decode_worker MEMORY_BYTES`. Ends with its parent."""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from PIL import Image

from vl2.core.config import ProcessorConfig
from vl2.core.errors import RequestError, TooLarge
from vl2.core.types import Grammar
from vl2.processing import pdf
from vl2.processing.images import decode_bytes
from vl2.processing.isolated import read_frame, write_frame


def main(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever a decoder prints is no answer of ours
    while True:
        try:
            job, data = read_frame(stdin)
        except EOFError:
            return
        head, pixels = run(job, data)
        write_frame(stdout, head, pixels)


def run(job: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    if job["job"] == "grammar":
        return check(job["kind"], data), b""
    limits = ProcessorConfig(
        max_image_pixels=job["max_image_pixels"], max_pdf_pages=job["max_pdf_pages"], exif=job["exif"]
    )
    try:
        images = [decode_bytes(data, limits)] if job["job"] == "picture" else pdf.render(data, job["pages"], limits)
        return {"sizes": [image.size for image in images]}, b"".join(map(Image.Image.tobytes, images))
    except RequestError as error:
        return {"error": error.message, "is_too_large": isinstance(error, TooLarge)}, b""
    except MemoryError:
        what = "the picture" if job["job"] == "picture" else "the PDF"
        message = f"{what} takes too much memory to decode (decode_memory_bytes)"
        return {"error": message, "is_too_large": False}, b""


def check(kind: Any, data: bytes) -> dict[str, Any]:
    from vl2.processing.constrain import check_grammar  # pictures do without

    spec = json.loads(data)
    try:
        check_grammar(Grammar(kind, tuple(spec) if isinstance(spec, list) else spec))
    except RequestError as error:
        return {"error": error.message}
    except MemoryError:
        return {"error": "the grammar takes too much memory to compile (decode_memory_bytes)"}
    return {}


if __name__ == "__main__":
    main(int(sys.argv[1]))
