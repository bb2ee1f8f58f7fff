"""Draw the curves of a training's log: losses, examination scores, how evenly experts are used.

python nano/curves.py RUN_FOLDER/log.jsonl … OUT.png    # several: runs that went on from one another, end to end
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def end_to_end(logs: list[Path]) -> list[dict]:
    """All entries; a run's clock, which begins in the middle if it went on from weights, goes on from the last one's end."""
    entries: list[dict] = []
    for log in logs:
        own = [json.loads(line) for line in log.read_text().splitlines()]
        behind_s = entries[-1]["elapsed_s"] - own[0]["elapsed_s"] if entries else 0.0
        entries += [e | {"elapsed_s": e["elapsed_s"] + behind_s} for e in own]
    return entries


def main(logs: list[Path], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    entries = end_to_end(logs)
    steps = [e for e in entries if "answer" in e]
    exams = [e for e in entries if "exam" in e]
    minutes = [e["elapsed_s"] / 60 for e in steps]
    figure, (losses, scores, experts) = plt.subplots(1, 3, figsize=(15, 4.2), dpi=80)
    for key, name in (
        ("answer", "answers (soft boxes)"),
        ("kind", "patch: class"),
        ("letter", "patch: character"),
        ("line", "patch: place in its line"),
        ("token", "token: class"),
        ("point", "attention: where to look"),
        ("spot", "token: box"),
        ("tally", "attention: counting"),
        ("share", "attention: the number read off it"),
        ("number", "the number, said at the name"),
        ("said", "how much was said"),
    ):
        if all(key in e for e in steps):  # logs of earlier runs have fewer
            losses.plot(minutes, [e[key] for e in steps], label=name)
    losses.set(yscale="log", title="losses", xlabel="minutes on one GPU")
    for task in sorted({k for e in exams for k in e["exam"] if "/" not in k}):
        scores.plot(
            [e["elapsed_s"] / 60 for e in exams if task in e["exam"]],
            [100 * e["exam"][task]["right"] for e in exams if task in e["exam"]],
            marker="o",
            ms=3,
            label=task,
        )
    scores.set(title="held-out scenes, right %", xlabel="minutes", ylim=(0, 101))
    for layer in range(len(steps[0]["load"])):
        for expert in range(len(steps[0]["load"][layer])):
            experts.plot(
                minutes,
                [100 * e["load"][layer][expert] for e in steps],
                color=f"C{layer}",
                lw=0.9,
                label=f"layer {layer + 1}" if expert == 0 else None,
            )
    experts.set(title="share of tokens per expert, %", xlabel="minutes", ylim=(0, 60))
    for axis in (losses, scores, experts):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out)


if __name__ == "__main__":
    main([Path(log) for log in sys.argv[1:-1]], Path(sys.argv[-1]))
