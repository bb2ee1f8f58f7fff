"""Find things and draw their boxes: python examples/ground.py [PICTURE THING…] → PICTURE-boxes.png

A thing is asked for as <|ref|>the bus<|/ref|>. Its boxes come in pixels of the picture.
"""

import os
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from vl2 import LLM, Grammar, Message, SamplingParams

COLOURS = ("#c2410c", "#1d64c8", "#247a3a", "#9a33ae")

picture, *things = sys.argv[1:] or [str(Path(__file__).parent / "pictures/street.webp"), "bus", "taxi", "bicycle"]

image = Image.open(picture).convert("RGB")
pen = ImageDraw.Draw(image)
params = SamplingParams(grammar=Grammar("grounding"))  # what is marked always has well-formed boxes

with LLM(os.environ.get("VL2_MODEL", "nano")) as llm:
    for idx, thing in enumerate(things):
        question = f"<image>\n<|ref|>the {thing}<|/ref|>."
        answer = llm.chat([Message("user", question, (picture,))], params).choices[0]
        for found in answer.grounding or ():
            for box in found.boxes:
                corners = (box.x1, box.y1, box.x2, box.y2)
                print(f"{found.label}: {corners}")
                pen.rectangle(corners, outline=COLOURS[idx % len(COLOURS)], width=4)
                pen.text((box.x1 + 6, box.y1 + 4), found.label, fill=COLOURS[idx % len(COLOURS)], font_size=18)

target = Path(Path(picture).stem + "-boxes.png")
image.save(target)
print(f"drawn into {target}")
