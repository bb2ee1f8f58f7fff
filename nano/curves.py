"""Draw the curves of a training log: losses, examination scores, how evenly experts are used.

python nano/curves.py RUN_FOLDER/log.jsonl OUT.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(log: Path, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    entries = [json.loads(line) for line in log.read_text().splitlines()]
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
        if key in steps[0]:  # logs of earlier runs have fewer
            losses.plot(minutes, [e[key] for e in steps], label=name)
    losses.set(yscale="log", title="losses", xlabel="minutes on one GPU")
    for task in sorted({k for e in exams for k in e["exam"] if "/" not in k}):
        scores.plot(
            [e["elapsed_s"] / 60 for e in exams],
            [100 * e["exam"].get(task, {"right": 0})["right"] for e in exams],
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
    main(Path(sys.argv[1]), Path(sys.argv[2]))
