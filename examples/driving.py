"""A driving scene → what is on the road, and where: python examples/driving.py [PICTURE] → JSON

One question for each kind of thing; the picture is encoded once and the questions run together, so twelve of them cost
little more than one. Boxes are pixels of the picture. Not for steering anything: answers take a good part of a second
and may be wrong: asked in Chinese how many buses there are (有几辆公交车？), nano says 2, where our picture has one.
"""

import asyncio
import json
import os
import sys
from itertools import chain
from pathlib import Path

from PIL import Image

from vl2 import LLM, Grammar, Message, SamplingParams

KINDS = ("car", "taxi", "bus", "bicycle", "train", "dog")  # with a real model also: pedestrian, traffic light, truck, …
PARAMS = SamplingParams(grammar=Grammar("grounding"), max_tokens=256)


async def find(llm: LLM, picture: Path, kind: str) -> list[dict]:
    question = Message("user", f"<image>\n<|ref|>the {kind}<|/ref|>.", (picture,))
    deltas = [delta async for delta in llm.stream([question], PARAMS)]
    found = deltas[-1].grounding or ()  # the last piece has them
    return [
        {"kind": kind, "box": [box.x1, box.y1, box.x2, box.y2]}
        for things in found
        for box in dict.fromkeys(things.boxes)
    ]


async def main(picture: Path) -> None:
    llm = LLM(os.environ.get("VL2_MODEL", "nano"))
    await llm.start()
    try:
        things = await asyncio.gather(*(find(llm, picture, kind) for kind in KINDS))
    finally:
        await llm.stop()
    with Image.open(picture) as image:
        size = {"width": image.width, "height": image.height}
    print(json.dumps({"picture": picture.name, **size, "things": [*chain(*things)]}, indent=2))


asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "pictures/street.webp")))
