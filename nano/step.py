"""A training step as recordings: on the GPU, forward and backward of each layout are recorded once and then replayed.

A step is some three thousand small kernels; launching them one by one from Python takes longer than running them, more
so while all other cores draw scenes. So a micro-batch is copied to where the recording of its layout reads, and one
launch runs them all; the optimiser's step is another recording. A layout is run unrecorded when it is met first, which
also warms it up. On a CPU nothing is recorded.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from forward import PROBED, answer_loss, bells, look, run
from fusable import as_written, compile_all
from heads import Heads
from optim import DECAY, Optimizer
from pack import Batch
from torch import Tensor

from model import MLP, Experts, Gate, NanoVL2, gated, gated_experts, put_together, take_apart

LOSSES = ("answer", "kind", "tint", "edge", "letter", "order", "line", "middle", "token", "spot", "token_order", "amount", "token_line", "token_letter", "name", "point", "tally", "share", "number", "said")  # fmt: skip


def gates(model: NanoVL2) -> list[Gate]:
    return [m for m in model.modules() if isinstance(m, Gate)]


def compile_parts(model: NanoVL2, checked: subprocess.Popen[str] | None) -> None:
    """Fuse what tower and decoder do between their matrix products, for any size; `checked` is of `start_check`."""
    kernels = next(model.parameters()).is_cuda and _install_kernels(model, checked)
    compile_all()
    for block in model.vision.blocks:
        block.compile(dynamic=True)
    if kernels:
        return
    apart, together = torch.compile(take_apart, dynamic=True), torch.compile(put_together, dynamic=True)
    act, act_experts = torch.compile(gated, dynamic=True), torch.compile(gated_experts, dynamic=True)
    for layer in model.language.model["layers"]:
        layer.self_attn.apart, layer.self_attn.together = apart, together
    for m in model.modules():
        if isinstance(m, MLP):
            m.gated = act
        elif isinstance(m, Experts):
            m.gated = act_experts


def start_check() -> subprocess.Popen[str]:
    """Whether the decoder's kernels compute the same on this GPU is asked in a process of its own: what is illegal there ends it alone."""
    command = [sys.executable, str(Path(__file__).parent / "fused.py")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _install_kernels(model: NanoVL2, checked: subprocess.Popen[str] | None) -> bool:
    """Whether the decoder runs by Triton kernels now; if not, parts of it are compiled as before there were any."""
    if checked is None:
        result = "plain"
    else:
        try:
            said, _ = checked.communicate(timeout=120)
            result = (said.strip().splitlines() or [f"it ended with {checked.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            checked.kill()
            result = "its check took too long"
    if result.startswith("fused"):
        import fused

        fused.install(model.language, result)
    print("decoder:", result, flush=True)
    return model.language.fast is not None


@dataclass
class Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]

    def play(self, inputs: list[Tensor]) -> None:
        if inputs:
            torch._foreach_copy_(self.inputs, inputs)
        self.graph.replay()


class Trainer:
    """All that a step reads and writes: fp32 weights, their bf16 copy that the step runs on, average, optimiser, heads."""

    def __init__(
        self, model: NanoVL2, heads: Heads, optimizer: Optimizer, weights: dict[str, float], record: bool
    ) -> None:
        device = next(model.parameters()).device
        self.model, self.heads, self.optimizer, self.record, self.device = model, heads, optimizer, record, device
        self.work = NanoVL2(model.config).to(device).bfloat16()
        for mine, theirs in zip(gates(self.work), gates(model)):
            mine.e_score_correction_bias.data = theirs.e_score_correction_bias.data  # the router's bias stays fp32
        for index, count in PROBED.items():
            self.work.language.model["layers"][index].self_attn.probe = count
        self.average = NanoVL2(model.config).to(device)
        self.average.load_state_dict(model.state_dict())
        self.averaged = list(zip(self.average.state_dict().values(), model.state_dict().values()))
        self.trained = [(w, p) for w, p in zip(self.work.parameters(), model.parameters()) if p.requires_grad]
        for p in [*(p for pair in self.trained for p in pair), *heads.parameters()]:
            p.grad = torch.zeros_like(p)
        self.weights = [weights.get(k, 1.0) for k in LOSSES]
        self.aux_scale, self.drift, self.balance_rate = (torch.zeros((), device=device) for _ in range(3))
        self.near = bells(6.0, *self._vocabulary)
        self.sums = torch.zeros(2, len(LOSSES), device=device)  # of the losses since they were last read, and how often
        self.shares = torch.zeros(len(gates(model)), gates(model)[0].weight.shape[0], device=device)
        self.recordings: dict[object, Recording | None] = {}
        self.pool = torch.cuda.graph_pool_handle() if record else None
        self.refresh()

    @property
    def _vocabulary(self) -> tuple[int, str]:
        return self.model.config["language_config"]["vocab_size"], str(self.device)

    def refresh(self) -> None:
        torch._foreach_copy_([w.data for w, _ in self.trained], [p.data for _, p in self.trained])

    def set_sharpness(self, sigma: float) -> None:
        """How narrow the bell around a coordinate is."""
        self.near.copy_(bells(sigma, *self._vocabulary))

    def read_losses(self) -> dict[str, float]:
        sums, counts = self.sums.tolist()
        self.sums.zero_()
        return {k: round(s / max(1, n), 4) for k, s, n in zip(LOSSES, sums, counts)}

    def set_rates(self, rate: float, aux: float, drift: float, heads_only: bool, tower_only: bool) -> None:
        """The schedule's factor on learning rates, the training-only losses' factor, and how fast the average follows."""
        self.optimizer.set_rate(rate, heads_only, decay=0.0 if tower_only else DECAY)
        self.balance_rate.fill_(0.0 if heads_only or tower_only else 0.001 * rate)
        self.aux_scale.fill_(aux)
        self.drift.fill_(drift)

    def losses(self, batch: Batch, r: int) -> None:
        """Forward and backward."""
        one = batch.pick(r)
        self._run(one.layout, one.tensors(), lambda inputs: self._losses(one.with_tensors(inputs)))

    def warm_up(self, batch: Batch) -> None:
        """Forward and backward without learning: what is compiled is compiled now. What does not compile runs as written."""
        for way_out in (as_written, self._without_kernels, None):
            try:
                self._losses(batch.pick(0))
                break
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                if way_out is None:
                    raise
                print(f"{way_out.__name__}: {type(error).__name__}: {error}"[:2000], flush=True)
                way_out()
        self._clear()

    def _without_kernels(self) -> None:
        self.work.language.fast = None

    def step(self, batch: Batch, r: int, update: bool = True) -> None:
        """Add a micro-batch's gradients, and let them move the weights if `update`."""
        self.losses(batch, r)
        if update:
            self._run("optimizer", [], lambda _: self._update())

    def _clear(self) -> None:
        torch._foreach_zero_([w.grad for w, _ in self.trained] + [p.grad for p in self.heads.parameters()])

    def _run(self, key: object, inputs: list[Tensor], work: Callable[[list[Tensor]], None]) -> None:
        recording = self.recordings.get(key)
        if recording is None and self.record and key in self.recordings:
            places = [t.clone() for t in inputs]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self.pool, torch.cuda.current_stream(), "thread_local"):
                work(places)
            recording = self.recordings[key] = Recording(graph, places)
        if recording is None:
            self.recordings[key] = None
            work(inputs)
        else:
            recording.play(inputs)

    def _losses(self, batch: Batch) -> None:
        # Products in fp32 are of numbers that come from bfloat16, or few: TF32 loses nothing of the ones and little of the others.
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            found = self._gradients(batch)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
        zero = torch.zeros((), device=self.device)
        values = [found[k].detach().float() if k in found else zero for k in LOSSES]
        self.sums += torch.stack((torch.stack(values), torch.stack([zero + (k in found) for k in LOSSES])))
        if batch.is_sheet:
            return
        for gate, share in zip(gates(self.work), self.shares):
            # DeepSeek's rule without auxiliary loss: an expert that is chosen too seldom gets a higher bias.
            share.copy_(gate.load / gate.load.sum())
            gate.e_score_correction_bias.data += self.balance_rate * torch.sign(share.mean() - share)

    def _gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Adds them; returns the losses."""
        if batch.is_sheet:
            found = look(self.work, self.heads, batch)
        else:
            out = run(self.work, self.heads, batch, 0, augment=True)
            found = out.aux | {"answer": answer_loss(out, self.near)}
        aux = sum(w * found[k] for k, w in zip(LOSSES[1:], self.weights[1:]) if k in found)
        (found.get("answer", 0.0) + self.aux_scale * aux).backward()
        return found

    def _update(self) -> None:
        torch._foreach_copy_([p.grad for _, p in self.trained], [w.grad for w, _ in self.trained])
        self.optimizer.step()
        self.refresh()
        averages, latest = zip(*self.averaged)
        ways = torch._foreach_sub(latest, averages)
        torch._foreach_mul_(ways, self.drift)
        torch._foreach_add_(averages, ways)
        self._clear()
