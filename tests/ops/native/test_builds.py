"""Every build has all that it calls: it is loaded here whatever this processor can run, as others will load it."""

import ctypes
from pathlib import Path

import pytest

from tests.ops.native.builds import needs_library
from vl2.ops.native.builds import FOLDER, library_path, variants

pytestmark = needs_library
BUILT = sorted(FOLDER.glob("vl2-*.so"))


@pytest.mark.parametrize("library", BUILT, ids=lambda path: path.stem)
def test_a_build_lacks_no_symbol(library: Path):
    """Loading looks all of them up; instructions of another processor are not run by it."""
    loaded = ctypes.CDLL(str(library))
    assert loaded.vl2_multiply and loaded._name == str(library)


def test_what_this_processor_would_take_is_among_them():
    assert {library_path(name) for name in variants()} <= set(BUILT)
