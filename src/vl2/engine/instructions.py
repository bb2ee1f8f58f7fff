"""Which instructions the matrix libraries may use where a row must have the same bits in every batch. No torch here.

Left to themselves, Intel's libraries on Intel's processors take other instructions for few rows than for many, and
other divisions of the inner sum for other numbers of threads: with AMX no rounding of row counts makes bfloat16 rows
agree, with MKL's float32 only 16 does, on one thread. Two settings of theirs end that, measured on a Xeon with AMX
(docs/log.md, 2026-11-26): afterwards float32 rows agree at every count and bfloat16 rows from two on.
"""

from __future__ import annotations

import os

from vl2.core.cpu import cpu_words

REPRODUCIBLE = {
    "MKL_CBWR": "AVX512,STRICT",  # sgemm: one way to add up, whatever the shape and the number of threads
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_FP16",  # the widest set without AMX
}


def limit_instructions(is_deterministic: bool) -> None:
    """Must run before torch multiplies anything, as both libraries read their settings once. What the user set stays.

    Processors of others are left alone: MKL takes its oldest code for such a setting there, and they have no AMX.
    """
    if is_deterministic and {"GenuineIntel", "avx512f"} <= cpu_words():
        for name, value in REPRODUCIBLE.items():
            os.environ.setdefault(name, value)
