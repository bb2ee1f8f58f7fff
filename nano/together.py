"""Several trainings side by side, one a GPU, that look at the same scenes: each has as many processes that draw as all have.

    python nano/together.py RUNS --gpus 1 2 3 --workers 58 --common "--minutes 18 --many 0.7" --run S "" --run T "--hold 0"

They may differ in what decides nothing about the scenes (losses, learning rates, weights to go on from). RUNS/NAME gets log
and weights, as from `train.py`.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import multiprocessing.connection
import os
import sys
from pathlib import Path

from train import NOT_SEEN, Drawn, arguments, draw, menu_of, train


def one(a: argparse.Namespace, drawn: Drawn, number: int, gpu: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    log = (a.run / "train.log").open("a")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    train(a, drawn, None, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--gpus", nargs="+", required=True)
    parser.add_argument("--workers", required=True, help="drawing processes of all")
    parser.add_argument("--common", default="", help="flags of train.py for all")
    parser.add_argument("--run", nargs=2, action="append", metavar=("NAME", "FLAGS"), required=True)
    g = parser.parse_args()
    given = []
    for name, flags in g.run:
        a = arguments(["--run", str(g.runs / name), "--workers", g.workers, *g.common.split(), *flags.split()])
        a.run.mkdir(parents=True, exist_ok=True)
        given.append(a)
    if len({menu_of(a) for a in given}) > 1 or len(given) > len(g.gpus):
        sys.exit("these trainings want other scenes, or more GPUs")
    drawn = draw(given[0], trainings=len(given), first=NOT_SEEN if any(a.weights for a in given) else 0)
    # Not before everything is drawn that uses forks: the trainings are forks, too, and the first to touch CUDA.
    children = [mp.Process(target=one, args=(a, drawn, k, g.gpus[k])) for k, a in enumerate(given)]
    for child in children:
        child.start()
    waiting = dict(enumerate(children))
    while waiting:
        mp.connection.wait([child.sentinel for child in waiting.values()])
        for k in [k for k, child in waiting.items() if not child.is_alive()]:
            print(f"{g.run[k][0]} ended with {waiting.pop(k).exitcode}", flush=True)
            if waiting:
                drawn.workers.leave(k)
    drawn.workers.stop()


if __name__ == "__main__":
    main()
