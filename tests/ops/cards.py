"""Compile a model's kernels for a GPU that is not here, and see how much shared memory a block of threads takes.

The model's own steps run on tensors without memory; each launch is compiled for the GPU instead. Where the tiles come
from is asked as on that GPU.

    python -m tests.ops.cards 89 101376 small            # every kernel: sm_89 with 99 KB, Small in bfloat16
    python -m tests.ops.cards 89 101376 tiny --quantization fp8 --cache fp8
    python -m tests.ops.cards 80 166912 base --deterministic
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from vl2.core.model_config import ModelConfig
from vl2.core.quantization_default import with_quantization
from vl2.model import vl2 as model_module
from vl2.model.kv_pool import KVPool
from vl2.model.step import QueryRows, StepInputs
from vl2.ops import tuning
from vl2.ops.attention.batch import AttentionBatch, ChunkShape
from vl2.ops.rows import RowRounding
from vl2.ops.sampling.rows import SamplingRows
from vl2.ops.step.rows import DecodeRows
from vl2.tools.plan_models import official_config

NOWHERE = torch.device("meta")
PAGE_SIZE, MAX_PAGES, CONTEXT = 16, 256, 2000
LAYERS = 3
"""One dense, one of experts, and the last, which computes a few rows only."""


@dataclass(frozen=True)
class Compiled:
    kernel: str
    shared_bytes: int
    sizes: dict[str, int]  # of its tile


class Card:
    """In the place of Triton's driver: a GPU that one can compile for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_kernels(
    config: ModelConfig,
    capability: int,
    shared_memory_bytes: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype | None = None,
    is_deterministic: bool = False,
) -> list[Compiled]:
    """Every kernel that the model's steps launch, once for each way it is compiled."""
    driver.set_active(Card(capability))
    found: dict[str, Compiled] = {}
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: object, grid: object, warmup: bool, **options: object) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        sizes = {name: value for name, value in options.items() if name.startswith(("BLOCK", "num_"))}
        name = f"{self.module.removeprefix('vl2.ops.')}.{self.fn.__name__}"
        found[f"{name} {kernel.hash}"] = Compiled(name, kernel.metadata.shared, sizes)

    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(tuning, "_shared_memory_bytes", lambda: shared_memory_bytes),
        torch.inference_mode(),
    ):
        _run(config, capability, dtype, kv_dtype or dtype, is_deterministic)
    return sorted(found.values(), key=lambda compiled: -compiled.shared_bytes)


def _run(
    config: ModelConfig, capability: int, dtype: torch.dtype, kv_dtype: torch.dtype, is_deterministic: bool
) -> None:
    """Steps of all kinds. What asks the GPU for its abilities, or tries it out, is told what this one would say."""
    from vl2.ops import exact_backend, triton_backend  # here, as modules look for their tiles when they are imported
    from vl2.ops.exact_linear import kernel as exact_linear
    from vl2.ops.experts import exact

    ops = exact_backend if is_deterministic else triton_backend
    with (
        mock.patch.object(model_module, "choose_backend", lambda *_: ops),
        _everywhere("is_before_hopper", lambda _: capability < 90),
        _everywhere("has_asm", lambda _: True),
        mock.patch.object(exact_linear, "agreeing_tiles", lambda *_: exact_linear.TILES),
        mock.patch.object(exact, "agreeing_tiles", lambda *_: (exact.FEW, exact.SEVERAL, exact.SOME, exact.MANY)),
        mock.patch.object(exact, "boxes_agree", lambda *_: True),
    ):
        language, vision = replace(config.language, layers=LAYERS), replace(config.vision, layers=1)
        config = replace(config, language=language, vision=vision)
        model = model_module.DeepseekVL2(config, 4096, dtype=dtype, device=NOWHERE, is_deterministic=is_deterministic)
        pool = KVPool(language, 2 * MAX_PAGES, PAGE_SIZE, dtype=kv_dtype, device=NOWHERE)
        for inputs in _steps():
            model(_with_fixed_splits(inputs) if is_deterministic else inputs, model.feature_table(1), pool)
        model.encode_tiles(torch.empty(1, 384, 384, 3, dtype=torch.uint8, device=NOWHERE))
        rows = {field.name: _ints(4) if field.name == "top_ks" else _floats(4) for field in fields(SamplingRows)}
        ops.sample(_floats(4, language.vocab_size), SamplingRows(**rows))
        begun = DecodeRows(**{field.name: _ints(4) for field in fields(DecodeRows)})
        ops.begin_decode(begun, _ints(8, MAX_PAGES), _longs(8), model.decoder.embed_tokens, PAGE_SIZE)


@contextmanager
def _everywhere(name: str, value: Callable[..., bool]) -> Iterator[None]:
    """Replace a function in every module that has imported it."""
    modules = [module for path, module in sys.modules.items() if path.startswith("vl2.ops") and hasattr(module, name)]
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def _steps() -> Iterator[StepInputs]:
    for count in (1, 8, 64, 512):
        yield _step([1] * count, CONTEXT)
    for lengths in ([200], [1100], [2048] * 2):
        yield _step(lengths, max(lengths), is_fresh=True)
    yield _step([1, 1, 30], CONTEXT, num_decodes=2)
    yield _step([1, 1, 30], CONTEXT, may_decode=True)  # as in a graph


def _step(lengths: list[int], context: int, **more: bool | int) -> StepInputs:
    """The last so many tokens of contexts of one length each."""
    starts = itertools.accumulate(lengths, initial=0)
    chunks = [ChunkShape(start, length, context) for start, length in zip(starts, lengths, strict=False)]
    last = [ChunkShape(idx, 1, context) for idx in range(len(chunks))]
    rows = sum(lengths)
    is_decode = rows == len(lengths)
    return StepInputs(
        token_ids=_longs(rows),
        positions=_longs(rows),
        kv_slots=_longs(rows),
        queries=QueryRows(None, _batch(chunks, **more)),
        last_queries=QueryRows(None if is_decode else _longs(len(chunks)), _batch(last)),
        num_logits=len(chunks),
        image_rows=_longs(0),
        image_sources=_longs(0),
        rounding=RowRounding(),
    )


def _with_fixed_splits(step: StepInputs) -> StepInputs:
    changed = (
        replace(q, sequences=replace(q.sequences, has_fixed_splits=True)) for q in (step.queries, step.last_queries)
    )
    queries, last_queries = changed
    return replace(step, queries=queries, last_queries=last_queries)


def _batch(chunks: list[ChunkShape], **more: bool | int) -> AttentionBatch:
    longest = max(chunk.length for chunk in chunks)
    lengths = _ints(len(chunks) + 1), _ints(len(chunks))
    return AttentionBatch(tuple(chunks), _ints(len(chunks), MAX_PAGES), *lengths, longest, **more)


def _ints(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.int32, device=NOWHERE)


def _longs(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.int64, device=NOWHERE)


def _floats(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device=NOWHERE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capability", type=int)
    parser.add_argument("shared_memory_bytes", type=int)
    parser.add_argument("model", choices=("tiny", "small", "base"))
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache", choices=("auto", "fp8"), default="auto")
    parser.add_argument("--deterministic", action="store_true")
    asked = parser.parse_args()
    compiled = compile_kernels(
        with_quantization(official_config(asked.model), asked.quantization),
        asked.capability,
        asked.shared_memory_bytes,
        dtype=getattr(torch, asked.dtype),
        kv_dtype=torch.float8_e4m3fn if asked.cache == "fp8" else None,
        is_deterministic=asked.deterministic,
    )
    for kernel in compiled:
        print(json.dumps(dataclasses.asdict(kernel)))


if __name__ == "__main__":
    main()
