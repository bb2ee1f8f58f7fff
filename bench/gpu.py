"""The speed of the engine on one GPU, at the real shapes with random weights. Nothing is downloaded.

    python bench/gpu.py [tiny small base] [--rows latency,throughput,prefill,first,vision,http] [--output FILE]
                        [--quantization int4 | int8 | fp8] [--kv-dtype fp8]

For each shape a table: every row beside its floor (bench/floors.py) and the share of it that is reached; then one JSON
line. Picture rows go through HTTP on loopback with distinct JPEG files; figures in process stand beside.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import shapes
import torch
from common import circumstances, drain, picture_prompt, request, text_prompt
from floors import Card, decode_bytes, prefill_seconds, vision_flops
from http_load import picture_rows

from vl2.core.config import EngineConfig
from vl2.core.types import Prompt
from vl2.engine.engine import Engine

IMAGE_ID, CONTEXT = 3, 1024
BATCHES = (1, 8, 32, 128)
ROWS = ("latency", "throughput", "prefill", "first", "vision", "http")


class Bench:
    """One shape on one card. Results are added row by row, so that a row that fails hides no other."""

    def __init__(self, name: str, folder: Path, card: Card, quantization: str, kv_dtype: str, frontends: int) -> None:
        self.name, self.card, self.folder, self.frontends = name, card, folder, frontends
        self.results: dict[str, float | str] = {}
        started_s = time.perf_counter()
        config = EngineConfig(
            device="cuda", dtype="bfloat16", random_weights=True, quantization=quantization, kv_dtype=kv_dtype,
            prefix_cache=False, max_sequences=256, max_step_tokens=8192, max_step_tiles=64, kv_cache_tokens=None,
        )  # fmt: skip
        self.engine = Engine(folder, config)
        torch.cuda.synchronize()
        self.results["start, s"] = time.perf_counter() - started_s
        self.results["KV pages"] = self.engine.runner.pool.num_pages
        self.results["weights, GB"] = self.engine.runner.weights_bytes / 1e9

    def add(self, row: str, value: float, floor: float | None = None) -> None:
        self.results[row] = value
        share = ""
        if floor is not None:
            self.results[row + " (floor)"] = floor
            share = f"{floor:12.3f} {min(value, floor) / max(value, floor):7.0%}"
        print(f"{self.name:6} {row:58} {value:12.3f} {share}", flush=True)

    # ---- decoding

    def latency(self) -> None:
        """Milliseconds between tokens, and how much of it the GPU works. The median of the steps that are counted has
        CONTEXT positions, as the floor and the GPU alone have."""
        for batch in BATCHES:
            begin_answers(self.engine, batch, 100, CONTEXT - 58)
            times = self._decode_times(batch)
            experts = self._distinct_experts(batch)
            step_s = statistics.median(times)
            floor_s = decode_bytes(self.engine.runner, batch, CONTEXT, experts) / self.card.bytes_per_s
            self.add(f"inter-token latency, batch {batch}, ms", 1e3 * step_s, 1e3 * floor_s)
            self.results[f"distinct experts a layer, batch {batch}"] = experts
            gpu_s = graph_seconds(self.engine, batch)
            self.add(f"  GPU alone, batch {batch}, ms", 1e3 * gpu_s)
            self.add(f"  GPU idle share, batch {batch}", max(0.0, 1 - gpu_s / step_s))

    def _decode_times(self, batch: int) -> list[float]:
        """Seconds of steps in which all `batch` answers decode; the engine is drained after."""
        times, last_s = [], time.perf_counter()
        while self.engine.has_work:
            events = self.engine.step()
            now_s = time.perf_counter()
            if len(events) == batch:
                times.append(now_s - last_s)
            last_s = now_s
        return times[20:-5]

    @torch.inference_mode()
    def _distinct_experts(self, batch: int) -> float:
        """Of one decoding step outside a graph, on the states that random prompts lead to: mean over the layers."""
        hit = [layer.mlp for layer in self.engine.runner.model.decoder.layers if hasattr(layer.mlp, "router")]
        counts: list[int] = []
        originals = [mlp.ops for mlp in hit]
        backend = originals[0]

        class Counting:
            norm_and_mix = None  # a single token's choice would not be seen

            def __getattr__(self, name: str):
                return getattr(backend, name)

            def norm_and_route(self, *args):
                x, normed, ids, weights = backend.norm_and_route(*args)
                counts.append(len(ids.unique()))
                return x, normed, ids, weights

        runner = self.engine.runner
        graphs, runner.decode_graphs = runner.decode_graphs, None
        prompt_graphs, runner.prompt_graphs = runner.prompt_graphs, None
        for i in range(batch):
            self.engine.add(request(f"{i}", text_prompt(64, seed=1000 + i), 3))
        self.engine.step()  # prefill
        for mlp in hit:
            mlp.ops = Counting()
        while self.engine.has_work:
            self.engine.step()
        for mlp, original in zip(hit, originals, strict=True):
            mlp.ops = original
        runner.decode_graphs, runner.prompt_graphs = graphs, prompt_graphs
        return statistics.mean(counts[-len(hit) :])

    # ---- prompts

    def throughput(self) -> None:
        """The best of two runs after one in which kernels are compiled and the pacer learns what prompts cost."""
        num, answer, seconds = 256, 128, []
        for repeat in range(3):
            for i in range(num):
                self.engine.add(request(f"{i}", text_prompt(CONTEXT, seed=5000 + 1000 * repeat + i), answer))
            seconds.append(drain(self.engine))
        self.add(f"{num} requests {CONTEXT} in / {answer} out, output tok/s", num * answer / min(seconds[1:]))

    def prefill(self) -> None:
        num = 128
        floor_s = prefill_seconds(self.engine.runner, self.card, num * CONTEXT, CONTEXT)
        seconds = []
        for repeat in range(3):
            for i in range(num):
                self.engine.add(request(f"{i}", text_prompt(CONTEXT, seed=9000 + 1000 * repeat + i), 1))
            seconds.append(drain(self.engine))
        rate = num * CONTEXT / min(seconds[1:])
        self.add(f"prefill {num} × {CONTEXT}, tok/s", rate, num * CONTEXT / floor_s)

    def first(self) -> None:
        geometry = self.engine.runner.model_config.tile_geometry
        text = self._first_token(lambda i: text_prompt(CONTEXT, seed=20_000 + i))
        floor_s = prefill_seconds(self.engine.runner, self.card, CONTEXT, CONTEXT)
        floor_s = max(floor_s, decode_bytes(self.engine.runner, 0, 0, 64) / self.card.bytes_per_s)
        self.add(f"first token, {CONTEXT} text tokens, ms", 1e3 * text, 1e3 * floor_s)
        picture = self._first_token(lambda i: picture_prompt(geometry, IMAGE_ID, 64, seed=30_000 + i))
        self.add("first token, one tile + 64 tokens, in process, ms", 1e3 * picture)

    def _first_token(self, prompt: Callable[[int], Prompt], repeat: int = 12) -> float:
        seconds = []
        for i in range(repeat):
            self.engine.add(request(f"{i}", prompt(i), 1))
            seconds.append(drain(self.engine))
        return statistics.median(seconds[2:])

    def vision(self) -> None:
        graphs = self.engine.runner.vision_graphs
        assert graphs is not None
        for num_tiles in (1, 2, 10, 64):
            graph = graphs.graphs[num_tiles][2]
            graph.replay()
            torch.cuda.synchronize()
            started_s = time.perf_counter()
            for _ in range(5):
                graph.replay()
            torch.cuda.synchronize()
            ms = 1e3 * (time.perf_counter() - started_s) / 5
            floor = 1e3 * vision_flops(self.engine.runner.model_config, num_tiles) / self.card.flops_per_s
            self.add(f"vision tower + projector, {num_tiles} tiles, ms", ms, floor)

    def http(self) -> None:
        self.close()
        for row, value in picture_rows(self.folder, self.frontends).items():
            self.add(row, value)

    def memory(self) -> None:
        self.add("memory allocated at most, GB", torch.cuda.max_memory_allocated() / 1e9)

    def close(self) -> None:
        """Give the card back, so that a server has room."""
        if hasattr(self, "engine"):
            self.memory()
            del self.engine
            gc.collect()
            torch.cuda.empty_cache()


def begin_answers(engine: Engine, count: int, num_tokens: int, context: int = CONTEXT) -> None:
    """To different prompts of so many tokens."""
    for i in range(count):
        engine.add(request(f"{i}", text_prompt(context, seed=i), num_tokens))


@torch.inference_mode()
def decode_graph(engine: Engine, batch: int) -> torch.cuda.CUDAGraph:
    """The graph of a decoding step at that context, to be launched by itself, after as many answers have run."""
    graphs = engine.runner.decode_graphs
    assert graphs is not None
    inputs, graph, *_ = graphs.graphs[min(size for size in graphs.graphs if size >= batch)]
    inputs.tensors["contexts"].fill_(CONTEXT)  # pages of the answers are still in the rows' tables
    inputs.tensors["positions"].fill_(CONTEXT - 1)
    return graph


def graph_seconds(engine: Engine, batch: int) -> float:
    """Of `decode_graph` launched over and over, without anything beside it."""
    graph = decode_graph(engine, batch)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for event in (start, end):  # the first round brings the clocks up again
        for _ in range(50):
            graph.replay()
        event.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 50 / 1e3


@contextmanager
def told(what: str) -> Iterator[None]:
    """A row that fails is told and does not end the run."""
    try:
        yield
    except Exception:
        print(f"FAILED {what}: {traceback.format_exc(limit=-4)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["tiny", "small", "base"])
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--quantization", default="auto", help="int4, int8, fp8: random codes, made at the real size")
    parser.add_argument("--kv-dtype", default="auto", help="fp8: of the KV cache")
    parser.add_argument("--frontends", type=int, default=1, help="processes for HTTP, in the rows that go through it")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    card = Card.measure()
    print(
        f"{card.name}: copy {card.bytes_per_s / 1e12:.2f} TB/s, bf16 {card.flops_per_s / 1e12:.0f} TFLOP/s, "
        f"fp8 {card.float8_per_s / 1e12:.0f} TFLOP/s"
    )
    lines = []
    for name in args.shapes:
        folder = shapes.write(name, Path(tempfile.mkdtemp()) / name)
        bench = None
        with told(f"{name}: start"):
            bench = Bench(name, folder, card, args.quantization, args.kv_dtype, args.frontends)
        for row in args.rows.split(",") if bench else ():
            with told(f"{name}: {row}"):
                getattr(bench, row)()
        if bench is not None:
            bench.close()
            what = dict(
                gpu=card.name,
                shape=name,
                quantization=args.quantization,
                kv_dtype=args.kv_dtype,
                frontends=args.frontends,
            )
            lines.append(circumstances("gpu") | what | bench.results)
            print(json.dumps(lines[-1]), flush=True)
    if args.output:
        args.output.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
