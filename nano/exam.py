"""The examination: canonical questions on held-out scenes, and how answers are scored.

`exam` draws one question for a scene; the training run scores batches of them on the GPU, and `evalset.py` writes a
fixed set of them for the HTTP API, scored by `vl2.tools`.
"""

from __future__ import annotations

from collections import defaultdict
from random import Random

from questions import WORDINGS, Asked, Manner, ask, call, count, counted, follow_up, matches, most, which
from scenes import Scene

TASKS = ("naming", "counting", "colour", "text", "box", "follow-up", "absent", "caption")


def exam(rng: Random, scenes: list[Scene], aloud: bool = False) -> Asked | None:
    """A random canonical question about these pictures."""
    lang = rng.choice(("en", "zh"))
    if len(scenes) > 1:
        return which(rng, scenes, lang, wording=0)
    return question(rng, scenes[0], rng.choice(TASKS), lang, aloud)


def question(rng: Random, scene: Scene, task: str, lang: str, aloud: bool = False) -> Asked | None:
    """The canonical question of a task about one picture, or None where the scene does not suit it."""
    kinds = {i.kind for i in scene.items}
    if not scene.items or (task == "colour" and "shape" not in kinds) or (task == "text" and "text" not in kinds):
        return None
    if task == "follow-up":
        return follow_up(rng, scene, lang, canonical=True, manner=Manner(aloud=aloud))
    asked = "box" if task == "absent" else task
    if task == "absent":
        asked = rng.choice(("box", "box", "colour", "text"))
        if asked == "text" and "text" in kinds:
            return None
    if task == "counting":
        return count_most(rng, scene, lang, aloud)
    turn = ask(rng, scene, asked, lang, want_absent=task == "absent", wording=0)
    return turn and Asked(task, lang, (turn[0],))


def count_most(rng: Random, scene: Scene, lang: str, aloud: bool) -> Asked | None:
    """Count what the scene holds most of."""
    target = most(rng, scene)
    if target is None:
        return None
    number = sum(matches(i, target) for i in scene.items)
    form = WORDINGS["counting"][lang][0]
    return Asked("counting", lang, ((form.format(**call(target, lang)), count(number, lang, aloud)),))


def iou(a: list[int], b: list[int]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0, w) * max(0, h)
    return both / max(1e-6, (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def evenly(records: list[dict]) -> dict[str, dict[str, float]]:
    """Counting as the evaluation set asks it, each number from 1 to 9 equally often: in scenes, seven of ten answers are 1."""
    right: dict[int, list[bool]] = defaultdict(list)
    for r in records:
        if r["task"] == "counting":
            right[counted(r["asked"].turns[-1][1])].append(r["exact"])
    means = [sum(right[n]) / len(right[n]) for n in range(1, 10) if right[n]]
    least = min((len(right[n]) for n in range(1, 10)), default=0)
    return {"counting evenly": {"n": least, "right": round(sum(means) / len(means), 4)}} if means else {}


def table(records: list[dict]) -> dict[str, dict[str, float]]:
    """Means of records (`task`, `lang`, `tiles`, `exact`, `ious`) by task, language and tile count."""
    groups: dict[str, list[dict]] = defaultdict(list)
    for r in records:
        tiles = "tiles 1" if r["tiles"] == 1 else "tiles 2-5" if r["tiles"] <= 5 else "tiles 6-10"
        for key in (r["task"], f"{r['task']}/{r['lang']}", f"{r['task']}/{tiles}"):
            groups[key].append(r)
    out = {}
    for key, rs in sorted(groups.items()):
        ious = [v for r in rs for v in r["ious"]]
        right = [
            sum(v >= 0.5 for v in r["ious"]) / len(r["ious"]) * r["exact"] if r["ious"] else float(r["exact"])
            for r in rs
        ]
        out[key] = {"n": len(rs), "right": round(sum(right) / len(rs), 4)} | (
            {"iou": round(sum(ious) / len(ious), 4)} if ious else {}
        )
    return out | evenly(records)
