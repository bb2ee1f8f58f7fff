"""The library's builds that this processor can run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vl2.ops.linear import can_pack
from vl2.ops.native.builds import find, library_path, variants

BUILT = [name for name in variants() if library_path(name).exists()]
needs_library = pytest.mark.skipif(not BUILT, reason="no native library was built")
"""`tests/engine/test_native_steps.py` fails where one should have been."""
needs_packing = pytest.mark.skipif(
    not can_pack(torch.zeros(1, dtype=torch.bfloat16)), reason="this processor has no bfloat16 products to pack for"
)
every_build = pytest.mark.parametrize("library", [library_path(name) for name in BUILT], ids=BUILT)
BFLOAT16 = [name for name in BUILT if name.endswith(("bf16", "amx"))]
every_bfloat16_build = pytest.mark.parametrize("library", [library_path(name) for name in BFLOAT16], ids=BFLOAT16)
"""Those that multiply bfloat16: by vdpbf16ps and, where there are such, on matrix units."""


def fastest() -> Path:
    path, _ = find()
    assert path is not None
    return path
