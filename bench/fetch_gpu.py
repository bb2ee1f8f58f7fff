"""An experiment: does a decoding step gain by a branch that has the cache fetch the shared experts during attention?
Not run yet.

    python bench/fetch_gpu.py [tiny small base] [--batches 1,8,32,128]

Every token takes the shared experts, so they are known before the router has chosen, and during attention and the
router memory is nearly idle. Kernels of one stream do not reach that far ahead (docs/log.md), a branch of the graph
beside them may. Printed for each batch: milliseconds of the step's graph as it is, with a branch for gate and up, and
with one for down too.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import shapes
import torch
import triton
import triton.language as tl
from common import drain
from gpu import begin_answers, graph_seconds

from vl2.core.config import EngineConfig
from vl2.engine.engine import Engine
from vl2.model.decoder import Decoder, DecoderLayer
from vl2.model.moe import MoE
from vl2.ops.quantized_weight.kernel_common import LINE, prefetch

PROGRAMS = 132
BRANCHES = {"as it is": 0, "gate and up ahead": 1, "down too": 2}


@triton.jit
def _fetch(weight, size, LINES: tl.constexpr):
    own = tl.cdiv(size, tl.num_programs(0))
    first = tl.program_id(0).to(tl.int64) * own
    prefetch(weight, first, min(first + own, size), LINES)


@contextmanager
def fetching(num_weights: int) -> Iterator[None]:
    """Layers begin by fetching so many of the shared experts' two matrices, in a stream of its own."""
    if not num_weights:
        yield
        return
    side, run_layer, run_decoder = torch.cuda.Stream(), DecoderLayer.forward, Decoder.forward

    def layer(self: DecoderLayer, *arguments: Any) -> Any:
        weights = self.mlp.expert_weights[0] if isinstance(self.mlp, MoE) else None
        if weights is not None:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for weight in (weights.shared_gate_up, weights.shared_down)[:num_weights]:
                    lines = triton.cdiv(weight.nbytes, PROGRAMS * LINE)
                    _fetch[(PROGRAMS,)](weight, weight.numel(), LINES=triton.next_power_of_2(lines))
        return run_layer(self, *arguments)

    def decoder(self: Decoder, *arguments: Any) -> Any:
        out = run_decoder(self, *arguments)
        torch.cuda.current_stream().wait_stream(side)
        return out

    with mock.patch.object(DecoderLayer, "forward", layer), mock.patch.object(Decoder, "forward", decoder):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["small"])
    parser.add_argument("--batches", default="1,8,32,128")
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__)
    for name in args.shapes:
        folder = shapes.write(name, Path(tempfile.mkdtemp()) / name)
        for label, num_weights in BRANCHES.items():
            with fetching(num_weights):
                config = EngineConfig(
                    device="cuda", dtype="bfloat16", random_weights=True, prefix_cache=False, max_sequences=128,
                    max_step_tokens=8192, max_step_tiles=2,
                )  # fmt: skip
                engine = Engine(folder, config)
                for batch in map(int, args.batches.split(",")):
                    begin_answers(engine, batch, 60)
                    drain(engine)
                    step_ms = 1e3 * graph_seconds(engine, batch)
                    print(f"{name:6} {label:18} batch {batch:4} {step_ms:9.3f} ms", flush=True)
                del engine
            gc.collect()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
