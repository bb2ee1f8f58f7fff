"""The library's builds that this processor can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from vl2.ops.native.library import find, library_path, variants

BUILT = [name for name in variants() if library_path(name).exists()]
needs_library = pytest.mark.skipif(not BUILT, reason="no native library was built")
every_build = pytest.mark.parametrize("library", [library_path(name) for name in BUILT], ids=BUILT)


def fastest() -> Path:
    path, _ = find()
    assert path is not None
    return path
