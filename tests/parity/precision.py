"""How far logits are from exact ones: of the kernels, beside those of plain torch in the same number format.

Three runs of one script of steps, with the same tokens, the same weights (bfloat16's values) and the same experts:

exact      torch in float64. Where the reference insists on float32 (scores and sums of attention, rotation, layer
           norm, router, sum of experts), so does this: about 1e-7 of a result, where bfloat16 rounds to 4e-3. The last
           product is float64.
reference  torch in bfloat16
kernels    Triton in bfloat16

Each run keeps its own cache, so that a later step sees what the earlier ones did to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from vl2.core.model_config import ModelConfig, MoEConfig
from vl2.model import vl2 as model_module
from vl2.model.kv_pool import KVPool
from vl2.model.step import QueryRows, StepInputs
from vl2.model.vl2 import DeepseekVL2
from vl2.ops import torch_backend
from vl2.ops.attention.batch import AttentionBatch, ChunkShape, count_decodes
from vl2.ops.backend import NormAndRoute
from vl2.ops.gate import reference as gate
from vl2.ops.rows import RowRounding

PAGE_SIZE, MAX_POSITIONS = 16, 8192
ROWS_AT_ONCE = 128
"""Of logits: in float64 those of a long prompt would take gigabytes."""


@dataclass(frozen=True)
class Script:
    """One step: whose tokens it takes, and what its logits are counted to."""

    path: str
    parts: Sequence[tuple[int, int]]  # (sequence, number of its next tokens)
    is_graph: bool = False  # kernels are not told how long the chunks are, as in a CUDA graph


class Forced:
    """A backend whose router is told which experts to choose. Their weights are of its own scores."""

    norm_and_mix = None  # experts would choose themselves

    def __init__(self, ops: ModuleType) -> None:
        self.ops = ops
        self.given: Iterator[torch.Tensor] | None = None  # ids [T, A] of one call after the other; None: it may choose
        self.chosen: list[torch.Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def route(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: MoEConfig
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`Backend.route` (ops/backend.py)."""
        if self.given is None:
            ids, weights = self.ops.route(x, weight, bias, config)
            self.chosen.append(ids.long())
            return ids, weights
        scores, ids = self._scores(x, weight), next(self.given)
        first = torch.arange(ids.shape[1], 0, -1, device=x.device) * 4.0  # a score is 1 at most
        bonus = torch.zeros_like(scores).scatter_(1, ids, first.expand(ids.shape))
        ids, weights = gate.choose(scores, bonus, replace(config, topk_method="noaux_tc", num_groups=1))
        return ids.int().contiguous(), weights.contiguous()

    @property
    def norm_and_route(self) -> NormAndRoute | None:
        """`Backend.norm_and_route` (ops/backend.py): its norm and sum, and the experts as `route` is told."""
        if self.ops.norm_and_route is None:
            return None
        return lambda *given: (*(out := self.ops.norm_and_route(*given))[:2], *self.route(out[1], *given[4:]))

    def _scores(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[T, E] float32, raw."""
        if self.ops is torch_backend:
            return x.float() @ weight.T
        from vl2.ops.gate.kernel import router_logits  # here, as a CPU without Triton has no kernels

        return router_logits(x, weight).unflatten(1, (-1, len(weight))).sum(1)


class Exact(Forced):
    def logits(self, hidden: torch.Tensor, weight: torch.Tensor, is_exact: bool = True) -> torch.Tensor:
        return hidden.double() @ weight.double().T


@dataclass
class Run:
    """A model on one backend, and its cache."""

    model: DeepseekVL2
    ops: Forced
    pool: KVPool | None = None
    hidden: list[torch.Tensor] = field(default_factory=list)  # [T, C] of each step

    @classmethod
    def of(cls, config: ModelConfig, ops: Forced, dtype: torch.dtype, device: str) -> Run:
        with mock.patch.object(model_module, "choose_backend", lambda *_: ops):
            return cls(DeepseekVL2(config, MAX_POSITIONS, dtype=dtype, device=device), ops)

    def take(self, steps: list[StepInputs]) -> None:
        """All steps, each with the logits of all its tokens."""
        num_pages = 1 + max(int(step.queries.sequences.block_tables.max()) for step in steps)
        model = self.model
        language = replace(model.config.language, layers=len(model.decoder.layers))
        self.pool = KVPool(language, num_pages, PAGE_SIZE, dtype=model.dtype, device=model.device)
        features = model.feature_table(0)
        self.hidden = [model.decoder(model.embed(step, features), step, self.pool) for step in steps]

    def logits(self, step: int) -> Iterator[torch.Tensor]:
        for rows in self.hidden[step].split(ROWS_AT_ONCE):
            yield self.model.decoder.logits(rows).double()


@dataclass
class Runs:
    exact: Run
    reference: Run
    kernels: Run

    @classmethod
    def of(cls, config: ModelConfig, kernels: ModuleType, device: str) -> Runs:
        """Weights are still to be filled into `reference.model`, and then `share_weights` is to be called."""
        bfloat16 = (Run.of(config, Forced(ops), torch.bfloat16, device) for ops in (torch_backend, kernels))
        return cls(Run.of(config, Exact(torch_backend), torch.float64, device), *bfloat16)

    def share_weights(self, layers: int | None = None) -> None:
        """The reference's, of all layers or the first few; further ones are cut off."""
        for run in (self.exact, self.reference, self.kernels):
            run.model.decoder.layers = run.model.decoder.layers[:layers]
        weights = self.reference.model.state_dict()
        self.exact.model.load_state_dict(weights)
        self.kernels.model.load_state_dict(weights, assign=True)

    @torch.inference_mode()
    def ratios(self, scripts: Sequence[Script], seed: int = 0) -> dict[str, Errors]:
        """By path."""
        language, device = self.exact.model.config.language, self.exact.model.device
        told = build_steps(scripts, language.vocab_size, device, seed)
        is_mla = language.mla is not None
        untold = [_as_in_graph(step, is_mla) if s.is_graph else step for s, step in zip(scripts, told, strict=True)]
        self.exact.ops.chosen.clear()
        self.exact.take(told)
        for run, steps in ((self.reference, told), (self.kernels, untold)):
            run.ops.given = iter(self.exact.ops.chosen)
            run.take(steps)
        found: dict[str, Errors] = {}
        for index, script in enumerate(scripts):
            errors = found.setdefault(script.path, Errors())
            for rows in zip(*(run.logits(index) for run in (self.exact, self.reference, self.kernels)), strict=True):
                errors.add(*rows)
        return found

    @torch.inference_mode()
    def vision_errors(self, tiles: torch.Tensor) -> Errors:
        """Of the features that the decoder reads. tiles [N, side, side, 3] uint8."""
        errors = Errors()
        errors.add(*(run.model.encode_tiles(tiles).double() for run in (self.exact, self.reference, self.kernels)))
        return errors


@dataclass
class Errors:
    """Sums of squares."""

    rows: int = 0
    count: int = 0
    exact: float = 0.0
    reference: float = 0.0
    kernels: float = 0.0

    def add(self, exact: torch.Tensor, reference: torch.Tensor, kernels: torch.Tensor) -> None:
        """[..., width] float64 each."""
        self.count += exact.numel()
        self.rows += exact.numel() // exact.shape[-1]
        self.exact += float(exact.square().sum())
        self.reference += float((reference - exact).square().sum())
        self.kernels += float((kernels - exact).square().sum())

    def merge(self, other: Errors) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def ratio(self) -> float:
        """RMS error of the kernels over that of the reference; NaN if anything is."""
        return (self.kernels / self.reference) ** 0.5

    @property
    def relative(self) -> float:
        """RMS error of the reference over the RMS of what is exact."""
        return (self.reference / self.exact) ** 0.5


def build_steps(scripts: Sequence[Script], vocab_size: int, device: torch.device, seed: int) -> list[StepInputs]:
    """Tokens are drawn at random; pages lie in no order."""
    dice = torch.Generator().manual_seed(seed)
    totals: dict[int, int] = {}
    for sequence, length in itertools.chain.from_iterable(script.parts for script in scripts):
        totals[sequence] = totals.get(sequence, 0) + length
    counts = [-(-total // PAGE_SIZE) for total in totals.values()]
    pages = torch.randperm(sum(counts), generator=dice, dtype=torch.int32).split(counts)
    tables = dict(zip(totals, pages, strict=True))
    done, steps = dict.fromkeys(totals, 0), []
    for script in scripts:
        rows, shapes, positions, slots = 0, [], [], []
        for sequence, length in script.parts:
            own = torch.arange(done[sequence], done[sequence] + length)
            done[sequence] += length
            shapes.append(ChunkShape(rows, length, done[sequence]))
            positions.append(own)
            slots.append(tables[sequence][own // PAGE_SIZE].long() * PAGE_SIZE + own % PAGE_SIZE)
            rows += length
        used = [tables[sequence] for sequence, _ in script.parts]
        block_tables = torch.nn.utils.rnn.pad_sequence(used, batch_first=True).to(device)
        ids = torch.randint(vocab_size, (rows,), generator=dice)
        steps.append(_step(ids, torch.cat(positions), torch.cat(slots), shapes, block_tables))
    return steps


def _step(
    ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, shapes: list[ChunkShape], tables: torch.Tensor
) -> StepInputs:
    """As `engine/batch.py` makes it, but all rows have logits."""
    batch = AttentionBatch.of(shapes, tables)
    batch = replace(
        batch,
        is_fresh=all(chunk.length == chunk.context_length for chunk in shapes),
        num_decodes=count_decodes(shapes) if batch.max_query_rows > 1 else 0,
    )
    queries = QueryRows(None, batch)
    ids, positions, slots = (x.to(tables.device) for x in (ids, positions, slots))
    return StepInputs(ids, positions, slots, queries, queries, len(ids), slots[:0], slots[:0], RowRounding())


def _as_in_graph(step: StepInputs, is_mla: bool) -> StepInputs:
    """As `engine/prompt_graphs.py` makes it."""
    batch = replace(step.queries.sequences, chunks=(), num_decodes=0, is_fresh=False, may_decode=not is_mla)
    return replace(step, queries=QueryRows(None, batch), last_queries=QueryRows(None, batch))
