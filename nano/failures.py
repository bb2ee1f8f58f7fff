"""Show wrong answers as pictures: a sheet of failure cases, a few of each task.

python nano/failures.py SCORES.json OUT.webp       # SCORES.json as `vl2 evaluate --output` writes it
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import draw
from evalset import FILE
from PIL import Image, ImageDraw, ImageFont
from scenes import make_scene

WIDTH, HEIGHT, COLUMNS, PER_TASK = 330, 300, 4, 3
_BOX = re.compile(r"\[(\d+), (\d+), (\d+), (\d+)\]")


def wrong_cases(scores: Path) -> list[tuple[dict, str]]:
    """Up to `PER_TASK` wrong answers of each task about one picture."""
    questions = {q["id"]: q for q in map(json.loads, FILE.read_text(encoding="utf-8").splitlines())}
    cases: dict[str, list] = {}
    for a in json.loads(scores.read_text(encoding="utf-8"))["answers"]:
        q = questions[a["id"]]
        # English only: the font subset holds just the characters that scenes print.
        if a["right"] < 1 and len(q["pictures"]) == 1 and q["lang"] == "en" and q["turns"][-1][1].isascii():
            cases.setdefault(q["task"], []).append((q, a["answer"]))
    return [case for task in sorted(cases) for case in cases[task][:PER_TASK]]


def panel(question: dict, answer: str) -> Image.Image:
    """The picture with expected boxes in green and answered ones in red, and the words below."""
    image = make_scene(int(re.search(r"\d+", question["pictures"][0])[0])).image.copy()
    pen = ImageDraw.Draw(image)
    (asked, expected) = question["turns"][-1]
    for text, colour in ((expected, (0, 160, 0)), (answer, (230, 0, 0))):
        for box in _BOX.findall(text):
            x0, y0, x1, y1 = (int(v) / 999 * side for v, side in zip(box, (*image.size, *image.size)))
            pen.rectangle(
                (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=colour, width=max(2, image.width // 200)
            )
    image.thumbnail((WIDTH - 8, HEIGHT - 70))
    out = Image.new("RGB", (WIDTH, HEIGHT), "white")
    out.paste(image, (4, 4))
    pen = ImageDraw.Draw(out)
    font = ImageFont.truetype(str(draw.font_files(True)[0]), 13)
    for k, line in enumerate((asked, "right: " + expected, "not: " + answer)):
        plain = _BOX.sub(
            "box", line.replace("<|ref|>", "").replace("<|/ref|>", "").replace("<|det|>", "").replace("<|/det|>", "")
        )
        pen.text((4, HEIGHT - 62 + 19 * k), plain[:46], font=font, fill=[(0, 0, 0), (0, 120, 0), (200, 0, 0)][k])
    return out


def main(scores: Path, out: Path) -> None:
    panels = [panel(*case) for case in wrong_cases(scores)]
    sheet = Image.new("RGB", (COLUMNS * WIDTH, -(-len(panels) // COLUMNS) * HEIGHT), "white")
    for k, p in enumerate(panels):
        sheet.paste(p, (k % COLUMNS * WIDTH, k // COLUMNS * HEIGHT))
    sheet.save(out, quality=70)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
