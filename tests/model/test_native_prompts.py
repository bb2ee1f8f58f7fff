"""A prompt through all layers by one call of the library beside the same layers one by one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.model.test_native import MHA, MOE, NOAUX
from tests.ops.native.builds import fastest, needs_library
from vl2.core.model_config import LanguageConfig, MLAConfig
from vl2.model.decoder import Decoder
from vl2.model.kv_pool import KVPool
from vl2.model.native import NativeDecoder
from vl2.model.native_prompts import NativePrompts
from vl2.model.packing import pack_weights
from vl2.model.step import QueryRows, StepInputs
from vl2.ops import native_backend
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.native.linear import multiplies
from vl2.ops.rows import RowRounding

pytestmark = [
    pytest.mark.cpu_only,
    needs_library,
    pytest.mark.skipif(not multiplies(), reason="prompts are computed so where there are matrix units"),
]
PAGE_SIZE = 16
PAGES = [[3, 0, 7, 1], [2, 9, 4, 8], [5, 6, 10, 11]]
EXPERTS = dataclasses.replace(MOE, expert_width=32, shared_width=64)
EVEN = dataclasses.replace(MHA, hidden_size=192, dense_width=96, heads=6, kv_heads=6, moe=EXPERTS)
CONFIGS = {
    "mha": EVEN,
    "grouped, with biases": dataclasses.replace(EVEN, kv_heads=2, has_attention_bias=True),
    "no shared experts": dataclasses.replace(EVEN, moe=dataclasses.replace(EXPERTS, shared_width=0)),
    "mla": dataclasses.replace(EVEN, mla=MLAConfig(None, 32, 14, 6, 16)),
    "mla, query rank": dataclasses.replace(
        EVEN,
        mla=MLAConfig(64, 96, 32, 16, 32),
        moe=dataclasses.replace(NOAUX, expert_width=32, shared_width=64),
    ),
}
Rows = tuple[int, int]
"""Of one sequence: the position of the first, the number of positions with the last."""


@dataclasses.dataclass
class Case:
    config: LanguageConfig
    decoder: Decoder
    pool: KVPool
    prompts: NativePrompts

    def run(self, rows: dict[int, Rows], wanted: list[int], is_native: bool, num_filled: int = 0) -> torch.Tensor:
        """Normed hidden states of the last row of the wanted sequences; `num_filled` rows belong to none."""
        self.decoder.native_prompts = self.prompts if is_native else None
        step = make_step(rows, wanted, num_filled)
        return self.decoder(self.decoder.embed_tokens[step.token_ids], step, self.pool)[: len(wanted)]


def make_step(rows: dict[int, Rows], wanted: list[int], num_filled: int) -> StepInputs:
    positions = [position for begin, end in rows.values() for position in range(begin, end)] + [0] * num_filled
    owners = [sequence for sequence, (begin, end) in rows.items() for _ in range(begin, end)]
    slots = [PAGES[s][p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for s, p in zip(owners, positions, strict=False)]
    ids = [(7 * position + 13 * sequence) % 101 for sequence, position in zip(owners, positions, strict=False)]
    chunks, ends = [], []
    for begin, end in rows.values():
        chunks.append(ChunkShape(chunks[-1].start + chunks[-1].length if chunks else 0, end - begin, end))
    for row, sequence in enumerate(wanted):
        chunk = chunks[list(rows).index(sequence)]
        ends.append((chunk.start + chunk.length - 1, ChunkShape(row, 1, chunk.context_length)))
    tables = torch.tensor(PAGES, dtype=torch.int32)
    none = torch.zeros(0, dtype=torch.int64)
    return StepInputs(
        token_ids=torch.tensor(ids + [0] * num_filled),
        positions=torch.tensor(positions),
        kv_slots=torch.tensor(slots + [12 * PAGE_SIZE] * num_filled),
        queries=QueryRows(None, AttentionBatch.of(chunks, tables[list(rows)])),
        last_queries=QueryRows(
            torch.tensor([row for row, _ in ends] or [0]),
            AttentionBatch.of([shape for _, shape in ends], tables[wanted]),
        ),
        num_logits=len(wanted),
        image_rows=none,
        image_sources=none,
        rounding=RowRounding(),
    )


@torch.inference_mode()
def make(name: str, has_experts: bool = True) -> Case:
    torch.manual_seed(0)
    config = CONFIGS[name] if has_experts else dataclasses.replace(CONFIGS[name], moe=None)
    decoder = Decoder(config, 128, native_backend, dtype=torch.bfloat16, device="cpu")
    for parameter_name, parameter in decoder.named_parameters():
        if parameter.dim() < 2:
            parameter.normal_(1.0 if "norm" in parameter_name else 0.0, 0.2)
        else:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    pack_weights(decoder)
    pool = KVPool(config, 12, PAGE_SIZE, dtype=torch.bfloat16, device="cpu")
    prompts = NativeDecoder(fastest(), config, decoder, pool, max_rows=4, threads=2).prompts()
    assert prompts is not None
    return Case(config, decoder, pool, prompts)


@pytest.mark.parametrize("has_experts", [True, False])
@pytest.mark.parametrize("name", ["mha", "grouped, with biases", "no shared experts", "mla", "mla, query rank"])
@torch.inference_mode()
def test_all_layers_in_one_call_are_those_one_by_one(name: str, has_experts: bool) -> None:
    """Whole prompts, later chunks of others, in any order, and rows that only fill up the step."""
    case = make(name, has_experts)
    first, later = {0: (0, 33), 1: (0, 20), 2: (0, 64)}, {1: (20, 49), 0: (33, 34)}
    for rows, wanted in ((first, [2, 0, 1]), (later, [1, 0])):
        hidden = []
        for is_native in (False, True):
            for layer in case.pool.layers if rows is first else []:
                layer.zero_()
            hidden.append(case.run(rows, wanted, is_native, num_filled=2).float())
        assert hidden[1].shape == (len(wanted), case.config.hidden_size)
        errors = (hidden[1] - hidden[0]).square().mean(-1) / hidden[0].square().mean(-1)
        assert errors.median() < 2e-4, "both round to bfloat16 many times, not always at the same places"
        assert has_experts or errors.max() < 2e-4, "rows that are nearly as near to another expert may take that one"


@pytest.mark.parametrize("name", ["mha", "mla"])
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_chunks_and_beside_others(name: str) -> None:
    case = make(name)
    whole = case.run({0: (0, 50)}, [0], is_native=True)
    cache = [layer.clone() for layer in case.pool.layers]
    for layer in case.pool.layers:
        layer.zero_()
    assert case.run({0: (0, 31), 2: (0, 9)}, [], is_native=True).shape == (0, case.config.hidden_size)
    assert torch.equal(case.run({2: (9, 30), 0: (31, 50)}, [0, 2], is_native=True)[:1], whole)
    own = torch.tensor(PAGES[0])
    dim = 0 if case.config.mla else 1
    for before, after in zip(cache, case.pool.layers, strict=True):
        assert torch.equal(before.index_select(dim, own), after.index_select(dim, own))


def test_widths_that_the_library_does_not_know_are_left_alone() -> None:
    config = dataclasses.replace(EVEN, dense_width=90)
    decoder = Decoder(config, 128, native_backend, dtype=torch.bfloat16, device="cpu")
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter)
    pack_weights(decoder)
    pool = KVPool(config, 2, PAGE_SIZE, dtype=torch.bfloat16, device="cpu")
    assert NativeDecoder(fastest(), config, decoder, pool, max_rows=4, threads=2).prompts() is None
