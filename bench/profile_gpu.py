"""Where the GPU's time goes: kernels of a decoding step, of a prompt step and of the vision tower, by total time.

python bench/profile_gpu.py [tiny] [--batches 1,128] [--top 14] [--quantization int4] [--deterministic]
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import shapes
import torch
from common import drain
from gpu import CONTEXT, begin_answers, decode_graph
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from vl2.core.config import EngineConfig
from vl2.engine.engine import Engine

IDLE_US = 20
"""A gap as long as this is between two runs."""


def kernels(what: str, run: Callable[[], object], repeat: int, top: int) -> None:
    """A kernel's time is from the end of the one before to its own end: chained ones begin early and wait inside."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeat):
            run()
        torch.cuda.synchronize()
    ranges = ((event.time_range, event.name) for event in profiler.events() if event.device_type == DeviceType.CUDA)
    spans = sorted((span.end, span.start, name) for span, name in ranges)
    added_us: dict[str, list[float]] = defaultdict(list)
    for (last_end, _, _), (end, start, name) in pairwise([(0.0, 0.0, ""), *spans]):
        added_us[name].append(end - max(last_end, start if start > last_end + IDLE_US else last_end))
    total_us, count = sum(map(sum, added_us.values())) / repeat, len(spans) / repeat
    print(f"== {what}: {total_us:.0f} µs of kernels, {count:.0f} of them", flush=True)
    for name, times in sorted(added_us.items(), key=lambda item: -sum(item[1]))[:top]:
        print(f"{sum(times) / repeat:9.1f} µs {len(times) / repeat:6.0f} × {sum(times) / len(times):7.1f}  {name[:90]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["tiny"])
    parser.add_argument("--batches", default="1,128")
    parser.add_argument("--top", type=int, default=14)
    parser.add_argument("--quantization", default="auto", help="as of bench/gpu.py")
    parser.add_argument("--deterministic", action="store_true", help="as of `vl2 serve`")
    args = parser.parse_args()
    for name in args.shapes:
        folder = shapes.write(name, Path(tempfile.mkdtemp()) / name)
        config = EngineConfig(
            device="cuda", dtype="bfloat16", random_weights=True, prefix_cache=False, max_sequences=128,
            max_step_tokens=8192, max_step_tiles=64, quantization=args.quantization,
            deterministic=args.deterministic,
        )  # fmt: skip
        engine = Engine(folder, config)
        for batch in map(int, args.batches.split(",")):
            begin_answers(engine, batch, 8)
            drain(engine)
            kernels(f"{name}: decode, batch {batch}", decode_graph(engine, batch).replay, 5, args.top)

        def prompts(number: int, engine: Engine = engine) -> None:
            begin_answers(engine, number, 1)
            drain(engine)

        kernels(f"{name}: prompt of {CONTEXT}", lambda: prompts(1), 2, args.top)
        kernels(f"{name}: 8 prompts of {CONTEXT}", lambda: prompts(8), 2, args.top)
        vision = engine.runner.vision_graphs
        if name == args.shapes[0] and vision is not None:
            for tiles in (2, 64):
                kernels(f"vision, {tiles} tiles", vision.graphs[tiles][2].replay, 2, 10)
        del engine, vision
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
