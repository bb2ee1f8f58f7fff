"""Decoding steps on a CPU by native code, where the library is there (ops/native)."""

from __future__ import annotations

import logging

import numpy as np
import torch

from vl2.engine.batch import block_tables
from vl2.engine.scheduler import Chunk
from vl2.model.kv_pool import KVPool
from vl2.model.native import DTYPES, NativeDecoder, UnknownLayout
from vl2.model.vl2 import DeepseekVL2
from vl2.ops.native import builds

log = logging.getLogger(__name__)

MAX_ROWS = 64
"""Sequences computed together, for which there is room; more are computed in groups of so many."""


class NativeSteps:
    def __init__(self, decoder: NativeDecoder, variant: str) -> None:
        self._decoder, self.variant = decoder, variant

    def run(self, chunks: list[Chunk]) -> torch.Tensor:
        """Logits [S, V] float32 of one token of each sequence, as `DecodeGraphs.run`."""
        size = self._decoder.max_rows
        groups = [chunks[first : first + size] for first in range(0, len(chunks), size)]
        logits = [self._run(group) for group in groups]
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _run(self, chunks: list[Chunk]) -> torch.Tensor:
        token_ids = np.array([chunk.sequence.token_ids[chunk.start] for chunk in chunks])
        positions = np.array([chunk.start for chunk in chunks])
        return self._decoder.run(token_ids, positions, block_tables([chunk.sequence for chunk in chunks]))


def choose_native_steps(model: DeepseekVL2, pool: KVPool, max_sequences: int, num_threads: int) -> NativeSteps | None:
    """None: torch computes these steps too; the log says why."""
    if model.device.type != "cpu":
        return None
    path, found = builds.find()
    if model.dtype not in DTYPES or pool.layers[0].dtype != model.dtype:
        found = f"it does not know {model.dtype} with a cache in {pool.layers[0].dtype}"
    elif path is not None:
        try:
            rows = min(max_sequences, MAX_ROWS)
            decoder = NativeDecoder(path, model.config.language, model.decoder, pool, rows, num_threads)
        except UnknownLayout as error:
            found = f"it does not read {error}"
        else:
            model.decoder.native_prompts = decoder.prompts()
            log.info("decoding natively, for %s", found)
            return NativeSteps(decoder, found)
    log.info("decoding without the native library: %s", found)
    return None
