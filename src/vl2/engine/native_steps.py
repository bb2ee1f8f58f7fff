"""Decoding steps on a CPU outside the deterministic mode: by native code where the library is there (ops/native)."""

from __future__ import annotations

import logging

import numpy as np
import torch

from vl2.engine.batch import block_tables
from vl2.engine.scheduler import Chunk, StepBatch
from vl2.model.kv_pool import KVPool
from vl2.model.native import DTYPES, NativeDecoder, UnknownLayout
from vl2.model.vl2 import DeepseekVL2
from vl2.ops.native import library

log = logging.getLogger(__name__)

MAX_ROWS = 16
"""Up to so many sequences that decode together a step is bound by the memory; beyond, torch's products are as good."""


class NativeSteps:
    def __init__(self, decoder: NativeDecoder) -> None:
        self._decoder = decoder

    def takes(self, batch: StepBatch) -> bool:
        return batch.is_decode and len(batch.chunks) <= self._decoder.max_rows

    def run(self, chunks: list[Chunk]) -> torch.Tensor:
        """Logits [S, V] float32 of the tokens after those of the chunks."""
        token_ids = np.array([chunk.sequence.token_ids[chunk.start] for chunk in chunks])
        positions = np.array([chunk.start for chunk in chunks])
        return self._decoder.run(token_ids, positions, block_tables([chunk.sequence for chunk in chunks]))


def choose_native_steps(
    model: DeepseekVL2, pool: KVPool, *, is_deterministic: bool, num_threads: int
) -> NativeSteps | None:
    """None: torch computes these steps too; the log says why."""
    has_own_cache = pool.layers[0].dtype == model.dtype
    if is_deterministic or model.device.type != "cpu" or model.dtype not in DTYPES or not has_own_cache:
        return None
    path, found = library.find()
    if path is not None:
        try:
            decoder = NativeDecoder(path, model.config.language, model.decoder, pool, MAX_ROWS, num_threads)
        except UnknownLayout as error:
            found = f"it does not read {error}"
        else:
            log.info("decoding natively, for %s", found)
            return NativeSteps(decoder)
    log.info("decoding without the native library: %s", found)
    return None
