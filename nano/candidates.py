"""Train candidates side by side, one a GPU, and ask each 1,000 questions on scenes that are kept for choosing.

    nohup python nano/candidates.py RUNS A B C > RUNS.log &      # about 23 minutes; RUNS/A … have logs, weights and scores

A candidate differs from A in one thing, so that the outcome teaches; `nano/README.md` tells what was expected. Training ends
first: what fails later (a package that the server needs, say) leaves the weights in RUNS/A/nano, to be asked elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
BASE = "--per-thing 0.25 --many 0.7 --sets 2 --mix fonts --crowds"
CANDIDATES = {
    "A": BASE + " --power 1.5 --amount 0.25",  # the shipped weights' flags
    "B": BASE + " --power 1.5 --amount 0.12",  # between those and none, which had lists two points better
    "C": BASE + " --power 1.5 --amount 0.25 --hold 0.2",  # the rate stays up longer
}
FIRST_SEED = 300_000  # of the scenes for choosing


def run(args: list[str], log: Path, **env: str) -> None:
    with log.open("w") as out:
        subprocess.run([sys.executable, *args], env=os.environ | env, stdout=out, stderr=out, check=True)


def wait_until_ready(url: str, server: subprocess.Popen, limit_s: float = 180) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url + "/health/ready", timeout=5):
            return
        time.sleep(1)  # a process that loads a model says nothing until it answers
    raise RuntimeError(f"no server at {url}")


def ask(folder: Path, questions: Path, pictures: Path, first: int, gpu: int) -> dict:
    """Serve a trained candidate on its GPU and ask it; the scores."""
    url, scores = f"http://127.0.0.1:{18_000 + gpu}", folder / "choosing.json"
    paths = [str(HERE.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    source = dict(PYTHONPATH=os.pathsep.join(paths), CUDA_VISIBLE_DEVICES=str(gpu))
    command = [sys.executable, "-m", "vl2", "serve", str(folder / "nano"), "--port", str(18_000 + gpu)]
    with (folder / "serve.log").open("w") as out:
        server = subprocess.Popen(command, env=os.environ | source, stdout=out, stderr=out)
    try:
        wait_until_ready(url, server)
        asked = ["-m", "vl2", "evaluate", str(questions), "--pictures", str(pictures), "--first", str(first)]
        run([*asked, "--concurrency", "32", "--url", url, "--output", str(scores)], folder / "evaluate.log", **source)
    finally:
        server.terminate()
        server.wait()
    return json.loads(scores.read_text(encoding="utf-8"))["scores"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("names", nargs="*", default=list(CANDIDATES), help="of CANDIDATES")
    parser.add_argument("--minutes", default="18.3", help="of training")
    parser.add_argument("--workers", help="drawing processes of each; default: what the cores give")
    parser.add_argument("--first", type=int, default=1000, help="questions")
    a = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    workers = a.workers or str(max(4, min(26, cores // len(a.names))))
    questions, pictures = a.runs / "choosing.jsonl", a.runs / "scenes"
    for name in a.names:
        (a.runs / name).mkdir(parents=True, exist_ok=True)

    def train_and_ask(gpu: int, name: str) -> str:
        folder = a.runs / name
        options = ["--run", str(folder), "--minutes", a.minutes, "--workers", workers, *CANDIDATES[name].split()]
        run([str(HERE / "train.py"), *options], folder / "train.log", CUDA_VISIBLE_DEVICES=str(gpu))
        drawing.result()
        scores = ask(folder, questions, pictures, a.first, gpu)
        return f"{name}: " + ", ".join(f"{k} {100 * v['right']:.1f}" for k, v in scores.items() if "·" not in k)

    def draw() -> None:
        """Beside the training: one process for a minute, then all cores for some seconds."""
        command = [str(HERE / "evalset.py"), "--first-seed", str(FIRST_SEED), "--file", str(questions)]
        run(command, a.runs / "draw.log")
        run([*command, "--pictures", str(pictures), "--first", str(a.first)], a.runs / "draw.log")

    with ThreadPoolExecutor() as pool:
        drawing = pool.submit(draw)
        jobs = {name: pool.submit(train_and_ask, gpu, name) for gpu, name in enumerate(a.names)}
        for name, job in jobs.items():
            print(job.result() if job.exception() is None else f"{name}: {job.exception()}", flush=True)


if __name__ == "__main__":
    main()
