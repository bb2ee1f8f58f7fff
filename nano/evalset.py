"""The fixed evaluation set: 4,000 questions on held-out scenes, and their pictures.

    python nano/evalset.py                       # write nano/evalset.jsonl anew (the tracked file)
    python nano/evalset.py --pictures FOLDER     # draw the pictures that its questions name
    python nano/evalset.py --first-seed 300000 --file OTHER.jsonl    # other scenes: to choose between candidates

A picture's name is its seed, so the file is all that has to be kept. `vl2 evaluate` asks the questions through HTTP.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

from exam import question
from questions import which
from scenes import make_scene
from views import best_grid

FILE = Path(__file__).parent / "evalset.jsonl"
FIRST_SEED = 100_000  # held out: training begins at scenes.TRAIN_SEEDS
QUOTA = {
    "naming": 600,
    "counting": 600,
    "colour": 500,
    "text": 600,
    "box": 600,
    "follow-up": 300,
    "absent": 300,
    "caption": 100,
}
WHICH = 400
PER_NUMBER = 67  # counting: as many questions for each of the numbers 1-9, or "one" would be the answer to most


def name(seed: int) -> str:
    return f"scene-{seed}.png"


def single_questions(seed: int = FIRST_SEED) -> list[dict]:
    """Scene after scene, each asked the tasks that it suits, until every quota is full; languages alternate."""
    rng, left, out = Random(2), dict(QUOTA), []
    languages = dict.fromkeys(QUOTA, 0)
    numbers = dict.fromkeys(map(str, range(1, 10)), PER_NUMBER)
    while any(left.values()):
        scene = make_scene(seed)
        across, down = best_grid(*scene.image.size)
        for task in [t for t in left if left[t]]:
            if task not in ("text", "colour") and rng.random() < 0.35:
                continue  # three or four questions a scene
            lang = ("en", "zh")[languages[task] % 2]
            asked = question(rng, scene, task, lang)
            if asked and task == "counting":
                number = asked.turns[0][1]
                if not numbers.get(number):
                    continue
                numbers[number] -= 1
            if asked:
                languages[task] += 1
                left[task] -= 1
                out.append(dict(pictures=[name(seed)], task=task, lang=lang, tiles=across * down, turns=asked.turns))
        seed += 1
    return out


def which_questions(seed: int = FIRST_SEED + 50_000) -> list[dict]:
    rng, out = Random(3), []
    while len(out) < WHICH:
        number = rng.choice((2, 2, 3))
        scenes = [make_scene(seed + k) for k in range(number)]
        grids = [best_grid(*s.image.size) for s in scenes] if number <= 2 else [(1, 1)]
        for lang in ("en", "zh"):
            asked = which(rng, scenes, lang, wording=0)
            if asked and len(out) < WHICH:
                out.append(
                    dict(
                        pictures=[name(seed + k) for k in range(number)],
                        task="which",
                        lang=lang,
                        tiles=max(a * d for a, d in grids),
                        turns=asked.turns,
                    )
                )
        seed += number
    return out


def draw_one(target: Path) -> None:
    if not target.exists():
        make_scene(int(target.stem.split("-")[1])).image.save(target, compress_level=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the scenes, below 1,000,000")
    parser.add_argument(
        "--first", type=int, help="only the pictures of so many questions, spread evenly as `vl2 evaluate --first` does"
    )
    a = parser.parse_args()
    if a.pictures is None:
        rows = [
            dict(id=i, **q)
            for i, q in enumerate(single_questions(a.first_seed) + which_questions(a.first_seed + 50_000))
        ]
        a.file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        return
    a.pictures.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in a.file.read_text(encoding="utf-8").splitlines()]
    if a.first:
        rows = [rows[i * len(rows) // a.first] for i in range(a.first)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(draw_one, sorted({a.pictures / p for r in rows for p in r["pictures"]}), chunksize=8))


if __name__ == "__main__":
    main()
