"""What the device keeps of each running sequence, so that a decoding step has to be told a few numbers only."""

from __future__ import annotations

import numpy as np
import torch

from vl2.engine.sequence import Sequence
from vl2.engine.staging import send


class DeviceRows:
    """One row for each sequence that may run, and a spare one for what only fills up a step."""

    def __init__(self, num_rows: int, max_pages: int, device: torch.device) -> None:
        self.spare_row, self.device = num_rows, device
        self.block_tables = torch.zeros(num_rows + 1, max_pages, dtype=torch.int32, device=device)
        self.last_tokens = torch.zeros(num_rows + 1, dtype=torch.int64, device=device)
        self._entered = [(0, 0)] * num_rows  # of each row: the admission it was written for, and how many pages it has

    def enter(self, sequences: list[Sequence]) -> None:
        """Write the pages of sequences that begin to decode, and of those that got more than one since: beside prompts
        they decode in steps that know nothing of these rows. A decoding step adds the page that it writes to by itself.
        """
        new = [s for s in sequences if not self._has_pages(s)]
        for sequence in sequences:
            self._entered[sequence.row] = sequence.admission, len(sequence.pages)
        if not new:
            return
        tables = np.zeros((len(new), self.block_tables.shape[1]), np.int32)
        for table, sequence in zip(tables, new, strict=True):
            table[: len(sequence.pages)] = sequence.pages
        rows, pages = send([_rows_of(new), tables], self.device)
        self.block_tables[rows] = pages

    def _has_pages(self, sequence: Sequence) -> bool:
        """All but the last, which the step adds."""
        admission, num_pages = self._entered[sequence.row]
        return admission == sequence.admission and len(sequence.pages) <= num_pages + 1

    def keep_tokens(self, sequences: list[Sequence], tokens: torch.Tensor) -> None:
        """tokens [L] int64: what was sampled for each of the sequences."""
        (rows,) = send([_rows_of(sequences)], self.device)
        self.last_tokens[rows] = tokens


def _rows_of(sequences: list[Sequence]) -> np.ndarray:
    return np.asarray([sequence.row for sequence in sequences], np.int64)
