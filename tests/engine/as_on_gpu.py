"""An engine on a CPU whose steps are those of a GPU: launched ahead, in graphs, with rows that the device keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vl2.engine.decode_graphs import DecodeGraphs
from vl2.engine.device_rows import DeviceRows
from vl2.engine.engine import Engine
from vl2.engine.prompt_graphs import PromptGraphs
from vl2.model.attention import MLA
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.rows import RowRounding


class Replayed:
    """Stands for a captured graph: results go to the same tensors each time."""

    def __init__(self, work: Callable[[], tuple]) -> None:
        self.work, self.results = work, work()

    def replay(self) -> None:
        for static, new in zip(self.results, self.work(), strict=True):
            static.copy_(new)


def capture(work: Callable[[], tuple], memory: object) -> tuple:
    graph = Replayed(work)
    return graph, graph.results


def add_graphs(engine: Engine, monkeypatch: pytest.MonkeyPatch, rounding: RowRounding, max_pages: int) -> None:
    """Of both kinds, by the operations that the model has."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    for module in ("decode_graphs", "prompt_graphs"):
        monkeypatch.setattr(f"vl2.engine.{module}.capture", capture)
    runner, most = engine.runner, engine.scheduler.max_sequences
    sizes = dict(max_sequences=most, max_tokens=runner.config.max_step_tokens)
    runner.native_steps, runner.rows = None, DeviceRows(most, max_pages, torch.device("cpu"))
    engine.scheduler.replays = rounding.is_exact
    with torch.inference_mode():
        runner.decode_graphs = DecodeGraphs(runner.model, runner.pool, runner.rows, most, rounding)
        runner.prompt_graphs = PromptGraphs(
            runner.model, runner.features, runner.pool, runner.rows, **sizes, rounding=rounding
        )


def as_on_gpu(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """With torch's operations, which look into a graph's tensors where kernels would."""
    runner = engine.runner
    runner.model.decoder.native_prompts = None
    for module in runner.model.modules():
        if hasattr(module, "ops"):
            module.ops = _looking(module.ops)
        if isinstance(module, MLA):
            module.expand = None
    rounding = RowRounding(runner.shape.rounding.multiple, is_exact=runner.is_deterministic)
    runner.shape = replace(runner.shape, rounding=rounding)
    add_graphs(engine, monkeypatch, rounding, -(-runner.max_context_tokens // runner.pool.page_size))
    return engine


def _looking(ops: Any) -> SimpleNamespace:
    def attend_heads(q, pool, batch, scale):
        return ops.attend_heads(q, pool, _as_the_host_sees_it(batch), scale)

    def attend_mla(q, kv_b, pool, rope, positions, batch, scale):
        return ops.attend_mla(q, kv_b, pool, rope, positions, _as_the_host_sees_it(batch), scale)

    own = {name: getattr(ops, name) for name in ops.__all__}
    return SimpleNamespace(**own | {"attend_heads": attend_heads, "attend_mla": attend_mla})


def _as_the_host_sees_it(batch: AttentionBatch) -> AttentionBatch:
    """With its chunks, which kernels find in `query_starts` and `context_lengths`; those without a context are none."""
    if batch.chunks:
        return batch
    starts, contexts = batch.query_starts.tolist(), batch.context_lengths.tolist()
    num = sum(context > 0 for context in contexts)
    assert not any(contexts[num:]), "what fills up a step comes behind all others"
    chunks = [ChunkShape(starts[idx], starts[idx + 1] - starts[idx], contexts[idx]) for idx in range(num)]
    return replace(batch.part(0, num), chunks=tuple(chunks))
