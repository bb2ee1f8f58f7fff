"""A folder of pictures, all at once: python examples/folder.py [FOLDER [QUESTION]] → a line of JSON each

The engine batches whatever runs together, so a hundred questions take far less than a hundred times one.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from vl2 import LLM, Message, RequestError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
NUM_TOGETHER = 64  # more would wait in the engine's queue

folder, question = (
    *sys.argv[1:],
    *(str(Path(__file__).parent / "pictures"), "What is in the picture?")[len(sys.argv) - 1 :],
)


async def ask(llm: LLM, picture: Path, gate: asyncio.Semaphore) -> None:
    async with gate:
        try:
            deltas = llm.stream([Message("user", f"<image>\n{question}", (picture,))])
            told = {"answer": "".join([delta.text async for delta in deltas])}
        except RequestError as error:  # not a picture, too large, …: the others go on
            told = {"error": error.message}
    print(json.dumps({"picture": picture.name, **told}, ensure_ascii=False), flush=True)


async def main() -> None:
    llm = LLM(os.environ.get("VL2_MODEL", "nano"))
    await llm.start()
    gate = asyncio.Semaphore(NUM_TOGETHER)
    pictures = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES)
    try:
        await asyncio.gather(*(ask(llm, picture, gate) for picture in pictures))
    finally:
        await llm.stop()


asyncio.run(main())
