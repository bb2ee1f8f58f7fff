"""Is this commit slower than another one? Both run in turns on this machine, and ratios are compared.

    python bench/against.py BASE [--rounds 5] [--limit 1.25] [--output FILE]

BASE is a commit, as origin/main; it is checked out beside. Only the public API is used, so that both can be asked. The
exit code is 1 when a row is slower by more than the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SLOWER = 1
PROBE = """
import json, time
from PIL import Image
from vl2 import LLM, Message, SamplingParams
from vl2.core.config import EngineConfig

times = {"first token after a picture": [], "next token": []}
started_s = time.perf_counter()
with LLM(engine=EngineConfig(device="cpu", dtype="float32")) as llm:
    for i in range(8):
        picture = Image.new("RGB", (384, 384), (30 * i, 100, 50))
        question = [Message("user", "<image>\\nWhat is in the picture?", (picture,))]
        stamps = [time.perf_counter()]
        for _ in llm.stream_sync(question, SamplingParams(max_tokens=48, ignore_eos=True)):
            stamps.append(time.perf_counter())
        if i:  # the first one warms up
            times["first token after a picture"].append(stamps[1] - stamps[0])
            times["next token"].append((stamps[-1] - stamps[1]) / 47)
print(json.dumps({name: min(values) for name, values in times.items()}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=1.25)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        git("worktree", "add", "--quiet", "--detach", str(base), args.base)
        try:
            rounds = [(measure(base), measure(ROOT)) for _ in range(args.rounds)]
        finally:
            git("worktree", "remove", "--force", str(base))
    ratios = {}
    print(f"{'':32} {'base, ms':>10} {'now, ms':>10} {'ratio':>7}")
    for row in rounds[0][0]:
        before, now = (min(pair[side][row] for pair in rounds) for side in (0, 1))
        ratios[row] = now / before
        print(f"{row:32} {1e3 * before:10.2f} {1e3 * now:10.2f} {ratios[row]:7.2f}")
    if args.output is not None:
        args.output.write_text(json.dumps({"base": args.base, "ratios": ratios}) + "\n", encoding="utf-8")
    if slower := [row for row, ratio in ratios.items() if ratio > args.limit]:
        print(f"slower than {args.base} by more than {args.limit}: {', '.join(slower)}", file=sys.stderr)
        sys.exit(SLOWER)


def git(*command: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *command], check=True)


def measure(tree: Path) -> dict[str, float]:
    """Row → seconds, of the code in `tree`."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the benchmark failed in {tree}:\n{done.stderr[-2000:]}")
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


if __name__ == "__main__":
    main()
