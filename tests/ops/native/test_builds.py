"""Every build has all that it calls: it is loaded here whatever this processor can run, as others will load it."""

import ctypes
from pathlib import Path

import pytest

from vl2.ops import native
from vl2.ops.native.builds import variants

BUILT = sorted(Path(native.__file__).parent.glob("vl2-*.so"))


@pytest.mark.skipif(not BUILT, reason="no native library was built")
@pytest.mark.parametrize("library", BUILT, ids=lambda path: path.stem)
def test_a_build_lacks_no_symbol(library: Path):
    """Loading looks all of them up; instructions of another processor are not run by it."""
    loaded = ctypes.CDLL(str(library))
    assert loaded.vl2_multiply and loaded._name == str(library)


@pytest.mark.skipif(not BUILT, reason="no native library was built")
def test_what_this_processor_would_take_is_among_them():
    assert {f"vl2-{name}" for name in variants()} <= {path.stem for path in BUILT}
