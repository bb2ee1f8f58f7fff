"""Conversations about drawn scenes to calibrate on: none of them is in training or in the examination.

python nano/calibration.py FOLDER [--number 400]      # FOLDER/calibration.jsonl and its pictures
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

from evalset import QUOTA, draw_one, name
from exam import question
from questions import which
from scenes import make_scene

FIRST_SEED = 190_000  # behind the examination's
TASKS = tuple(QUOTA)


def conversations(number: int) -> list[dict]:
    """As many of each task; every tenth is about several pictures."""
    rng, out, seed = Random(4), [], FIRST_SEED
    while len(out) < number:
        lang = ("en", "zh")[len(out) // len(TASKS) % 2]
        if len(out) % 10 == 9:
            scenes = [make_scene(seed), make_scene(seed + 1)]
            asked, pictures = which(rng, scenes, lang, wording=0), [name(seed), name(seed + 1)]
        else:
            asked, pictures = question(rng, make_scene(seed), TASKS[len(out) % len(TASKS)], lang), [name(seed)]
        seed += 2
        if asked:
            out.append(dict(pictures=pictures, turns=asked.turns))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=400)
    a = parser.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    rows = conversations(a.number)
    with ProcessPoolExecutor() as pool:
        list(pool.map(draw_one, sorted({a.folder / p for r in rows for p in r["pictures"]}), chunksize=8))
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (a.folder / "calibration.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
