"""In the deterministic mode every matrix product has as many rows as the processor needs for a row to have the same
bits alone and among others; whoever multiplies sees to it, however few rows a step wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.parity.steps import build_model, text_step
from vl2.model.kv_pool import KVPool
from vl2.model.step import QueryRows
from vl2.model.vl2 import DeepseekVL2
from vl2.ops.rows import RowRounding

MULTIPLE = 4


@pytest.fixture
def model() -> Iterator[DeepseekVL2]:
    model = build_model("mla-greedy")
    model.set_rounding(RowRounding(MULTIPLE, is_exact=True))
    yield model
    model.set_rounding(RowRounding())


def recorded(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, rows: list[int]) -> None:
    call: Callable[..., torch.Tensor] = getattr(owner, name)

    def counting(x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        rows.append(x.shape[-2])
        return call(x, *args, **kwargs)

    monkeypatch.setattr(owner, name, counting)


@pytest.mark.cpu_only
@torch.inference_mode()
@pytest.mark.parametrize("num_tokens", [1, 3, 6])
def test_router_experts_and_logits_get_whole_multiples_of_rows(
    monkeypatch: pytest.MonkeyPatch, model: DeepseekVL2, num_tokens: int
) -> None:
    rows: list[int] = []
    ops = SimpleNamespace(**{name: getattr(model.ops, name) for name in dir(model.ops) if not name.startswith("__")})
    for name in ("route", "logits"):
        recorded(monkeypatch, ops, name, rows)
    recorded(monkeypatch, F, "linear", rows)
    for module in model.modules():
        if hasattr(module, "ops"):
            monkeypatch.setattr(module, "ops", ops)
    step = text_step(num_tokens)
    queries = QueryRows(None, replace(step.queries.sequences, has_fixed_splits=True))
    rounding = RowRounding(MULTIPLE, is_exact=True)
    step = replace(step, queries=queries, last_queries=queries, rounding=rounding, num_logits=1)
    pool = KVPool(model.config.language, 2, 16, dtype=torch.float32, device="cpu")
    logits = model(step, model.feature_table(1), pool)
    assert logits.shape == (1, model.config.language.vocab_size)
    assert rows and all(count % MULTIPLE == 0 for count in rows), rows
