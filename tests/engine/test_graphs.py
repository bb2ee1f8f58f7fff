"""What CUDA graphs hold, on a CPU: each replay runs the step anew, kernels run in the interpreter."""

from __future__ import annotations

import pytest
import torch

from golden_cases import load_variant
from tests import interpreter  # noqa: F401  # before Triton is imported anywhere
from tests.parity.steps import build_engine, case_prompt, greedy
from vl2.engine.decode_graphs import DecodeGraphs
from vl2.engine.device_rows import DeviceRows
from vl2.engine.engine import Engine
from vl2.engine.prompt_graphs import PromptGraphs
from vl2.engine.staging import StaticInputs
from vl2.ops import triton_backend


class Replayed:
    """Stands for a captured graph: results go to the same tensors each time."""

    def __init__(self, step, inputs) -> None:
        self.step, self.inputs = step, inputs
        self.logits, self.tokens = step(inputs)

    def replay(self) -> None:
        for static, new in zip((self.logits, self.tokens), self.step(self.inputs), strict=True):
            static.copy_(new)


def with_graphs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    def capture_decode(graphs: DecodeGraphs, size: int, memory: object) -> None:
        inputs = torch.zeros(9, size, dtype=torch.int32)
        inputs[:5] = torch.from_numpy(graphs._idle_ints(size))
        graph = Replayed(graphs._step, inputs)
        graphs._graphs[size] = inputs, graph, graph.logits, graph.tokens  # type: ignore[assignment]

    def capture_prompt(graphs: PromptGraphs, num_sequences: int, num_tokens: int, memory: object) -> tuple:
        inputs = StaticInputs(graphs._arrays(num_tokens, num_sequences), torch.device("cpu"))
        graph = Replayed(graphs._step, inputs.tensors)
        return inputs, graph, graph.logits, graph.tokens

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(DecodeGraphs, "_capture", capture_decode)
    monkeypatch.setattr(PromptGraphs, "_capture", capture_prompt)
    runner, kernels = engine.runner, triton_backend
    for module in runner.model.modules():
        if isinstance(getattr(module, "ops", None), type(kernels)):
            module.ops = kernels
    runner.rows = DeviceRows(engine.scheduler.max_sequences, 256, torch.device("cpu"))
    with torch.inference_mode():
        runner.decode_graphs = DecodeGraphs(runner.model, runner.pool, runner.rows, 2)
        runner.prompt_graphs = PromptGraphs(
            runner.model, runner.features, runner.pool, runner.rows, max_sequences=2, max_tokens=32
        )
    return engine


def test_prompts_and_answers_in_graphs_give_the_official_tokens(monkeypatch: pytest.MonkeyPatch):
    variant = load_variant("mla-greedy")
    engine = with_graphs(build_engine(variant.name, max_sequences=2, max_step_tokens=32), monkeypatch)
    cases = [variant.case("text"), variant.case("square")]  # the second waits for the first's last chunk: a mixed step
    answers = greedy(engine, {case.name: case_prompt(case) for case in cases}, max_tokens=3)
    for case in cases:
        assert [token_id for token_id, _ in answers[case.name]] == case.greedy_tokens[:3]
