"""What `vl2 plan` says beside what the engine allocates on this GPU, at the real shapes with random weights.

    python bench/plan.py [tiny small base] [--output FILE]

Prints a Markdown table for docs/guides/plan.md, in MiB.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path

import shapes
import torch
from common import circumstances

from vl2.core.config import EngineConfig
from vl2.core.gpu_memory import GRAPH_BYTES, RUNTIME_BYTES
from vl2.engine.memory import measure_workspace
from vl2.engine.runner import Runner
from vl2.tools.plan import Wanted, make_plan
from vl2.tools.plan_devices import Device
from vl2.tools.plan_models import official_config

MIB = 2**20


def compare(name: str, folder: Path) -> dict[str, tuple[int, int]]:
    """Part → bytes (planned, allocated). The card must be ours alone: what is not free counts as ours."""
    total = torch.cuda.mem_get_info()[1]
    engine = EngineConfig(device="cuda", dtype="bfloat16", random_weights=True)
    plan = make_plan(official_config(name), Device("this", total), Wanted("bfloat16"), engine)
    runner = Runner(folder, engine)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free_after, _ = torch.cuda.mem_get_info()
    pool = sum(layer.nbytes for layer in runner.pool.layers)
    rows = {
        "weights": (plan.weights_bytes, runner.weights_bytes),
        "picture features": (plan.features_bytes, runner.features.nbytes),
        "KV cache": (plan.kv_bytes, pool),
        "workspace": (plan.vision_bytes + plan.step_bytes, measure_workspace(runner.model, engine)),
    }
    parts = sum(allocated for _, allocated in rows.values())
    rows["all of the process"] = (plan.total_bytes, total - free_after)
    rows["CUDA, kernels, graphs beyond the workspace"] = (RUNTIME_BYTES + GRAPH_BYTES, total - free_after - parts)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["tiny", "small", "base"])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    results = circumstances("plan")
    print("| model | part | planned, MiB | allocated, MiB | difference |\n| --- | --- | --- | --- | --- |")
    for name in args.names:
        with tempfile.TemporaryDirectory() as folder:
            for part, (planned, allocated) in compare(name, shapes.write(name, Path(folder) / name)).items():
                difference = planned / allocated - 1 if allocated else 0.0
                print(
                    f"| {name} | {part} | {planned / MIB:,.0f} | {allocated / MIB:,.0f} | {difference:+.1%} |",
                    flush=True,
                )
                results[f"{name}, {part}, bytes (planned, allocated)"] = [planned, allocated]
        gc.collect()
        torch.cuda.empty_cache()
    if args.output is not None:
        with args.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
