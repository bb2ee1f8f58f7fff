"""Which build of the library this processor can run. No torch here."""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
from ctypes import c_int32, c_int64, c_void_p
from pathlib import Path

from vl2.core.cpu import AVX2, cpu_words
from vl2.ops.native.structures import STRUCTURES

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent

AVX512 = AVX2 | frozenset("avx512f avx512bw avx512cd avx512dq avx512vl".split())
BFLOAT16 = AVX512 | {"avx512_bf16", "avx512_vnni"}
AMX = frozenset({"amx_tile", "amx_bf16", "amx_int8"})
X86_64: tuple[tuple[str, frozenset[str]], ...] = (
    ("x86-64-v4-amx", BFLOAT16 | AMX),
    ("x86-64-v4-bf16", BFLOAT16),
    ("x86-64-v4", AVX512),
    ("x86-64-v3", AVX2),
)
"""(variant, words of /proc/cpuinfo that it needs), the fastest first. hatch_build.py builds all of a machine's kind."""

PROMPT_CALLS = (
    "vl2_attend_prompt", "vl2_swiglu_rows", "vl2_mix_rows", "vl2_norm_rows", "vl2_write_heads", "vl2_mix_experts",
    "vl2_route_rows", "vl2_linear_rows", "vl2_project_rows", "vl2_write_latent", "vl2_rotate_queries",
    "vl2_decode_prompt", "vl2_encode_tiles", "vl2_project_tiles",
)  # fmt: skip
"""Of `workers` and a structure each. Not all are in each build."""


def library_path(variant: str) -> Path:
    return FOLDER / f"vl2-{variant}.so"


def variants() -> list[str]:
    """Those that this processor can run, the fastest first."""
    machine = platform.machine()
    if machine == "aarch64":
        return ["aarch64"]
    if machine != "x86_64":
        return []
    words = cpu_words() if may_use_tiles() else cpu_words() - AMX
    return [name for name, needed in X86_64 if needed <= words]


@functools.cache
def may_use_tiles() -> bool:
    """Linux gives AMX's large registers only to a process that asks for them: arch_prctl(ARCH_REQ_XCOMP_PERM, 18)."""
    return "amx_tile" in cpu_words() and ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0


def find() -> tuple[Path | None, str]:
    """(the library, its variant), or (None, why there is none that can be used)."""
    runnable = variants()
    if not runnable:
        return None, "this processor is too old for it"
    for name in runnable:
        if library_path(name).exists():
            return _usable(library_path(name), name)
    return None, "it was not built: install vl2 where a C compiler or the package ziglang can be had"


@functools.cache
def _usable(path: Path, variant: str) -> tuple[Path | None, str]:
    """As `find`. A checkout may be newer than what was built in it: torch computes the same, only slower."""
    try:
        load(path)
    except (OSError, AttributeError) as error:  # no library; one that lacks a function
        log.warning("the native library is not used: %s", error)
        return None, f"{error}; install vl2 again"
    return path, variant


MOST_STRUCTURES = 64


@functools.cache
def load(path: Path) -> ctypes.CDLL:
    """Raises: OSError, AttributeError where it cannot be loaded, or belongs to another version of these files."""
    library = ctypes.CDLL(str(path))
    library.vl2_sizes.argtypes, library.vl2_sizes.restype = (c_void_p,), None
    sizes = (c_int64 * MOST_STRUCTURES)()  # a later version may have more of them than this one
    library.vl2_sizes(sizes)
    if [size for size in sizes if size] != [ctypes.sizeof(structure) for structure in STRUCTURES]:
        raise OSError(f"{path} is of another version")
    library.vl2_engine_new.argtypes, library.vl2_engine_new.restype = (c_void_p, c_int32), c_void_p
    library.vl2_engine_free.argtypes, library.vl2_engine_free.restype = (c_void_p,), None
    library.vl2_step.argtypes, library.vl2_step.restype = (c_void_p, c_void_p), None
    library.vl2_workers_new.argtypes, library.vl2_workers_new.restype = (c_int32,), c_void_p
    library.vl2_workers_free.argtypes, library.vl2_workers_free.restype = (c_void_p,), None
    if hasattr(library, "vl2_shorten"):
        library.vl2_shorten.argtypes, library.vl2_shorten.restype = (c_void_p, c_void_p, c_int64), c_int64
    for name in PROMPT_CALLS:
        if hasattr(library, name):  # some only where the processor multiplies bfloat16, or has matrix units
            function = getattr(library, name)
            function.argtypes, function.restype = (c_void_p, c_void_p), c_int32
    return library
