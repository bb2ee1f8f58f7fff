"""cuBLASLt by ctypes: what torch leaves out is to say which algorithm a product has.

Matrices lie by rows here and by columns there: out = x Wᵀ is to cuBLAS outᵀ = W xᵀ, and nothing is turned over. Names
and numbers are those of cublasLt.h and library_types.h.
"""

from __future__ import annotations

import ctypes
import enum
import functools
from collections.abc import Callable, Sequence
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

import torch

BFLOAT16, FLOAT32, COMPUTE_FLOAT32, TRANSPOSE = 14, 0, 68, 1
DESC_TRANSA, DESC_EPILOGUE, DESC_BIAS, PREFERENCE_WORKSPACE = 3, 7, 8, 1
NOT_SUPPORTED = 15
ALIGNMENT_BYTES = 256
"""Of every tensor, which the heuristic takes for granted."""
WORKSPACE_BYTES = 64 << 20
"""More than the second cache, which writing it empties."""
ROUNDS = 3
"""Of timing."""


class CublasLtError(Exception):
    """The library is not there, or a call failed."""


class Epilogue(enum.IntEnum):
    BIAS = 4
    GELU_BIAS = 36  # the tanh form


@dataclass(frozen=True, slots=True)
class Product:
    """out [rows, width] = epilogue(x [rows, depth] · weight [width, depth]ᵀ + added + bias), in bfloat16."""

    rows: int
    width: int
    depth: int
    epilogue: Epilogue
    adds: bool = False

    def __str__(self) -> str:
        return f"{self.rows} x {self.width} x {self.depth}, {self.epilogue.name}{', added' * self.adds}"


class _Algorithm(ctypes.Structure):
    _fields_ = [("data", c_uint64 * 8)]


ALGORITHM_BYTES = ctypes.sizeof(_Algorithm)


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = [
        ("algorithm", _Algorithm), ("workspace", c_size_t), ("state", c_int), ("waves", c_float),
        ("reserved", c_int * 4),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Description:
    operation: c_void_p
    weight: c_void_p
    x: c_void_p
    out: c_void_p


class CublasLt:
    """Of one device, for one thread. Algorithms are plain bytes, which mean the same to the same version."""

    def __init__(self, device: torch.device) -> None:
        """Raises: CublasLtError."""
        self._library = _load()
        self.version = int(self._library.cublasLtGetVersion())
        self._handle = c_void_p()
        self._describe = functools.cache(self._new_description)  # never given back: a process has few
        with torch.cuda.device(device):
            self._call("cublasLtCreate", byref(self._handle))
            self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)

    @staticmethod
    def takes(*tensors: torch.Tensor) -> bool:
        return all(t.numel() > 0 and t.is_contiguous() and t.data_ptr() % ALIGNMENT_BYTES == 0 for t in tensors)

    def candidates(self, product: Product, most: int) -> list[bytes]:
        """Algorithms that the heuristic names, the best in its opinion first.

        Raises: CublasLtError.
        """
        about, preference, size = self._describe(product), c_void_p(), c_size_t(WORKSPACE_BYTES)
        found, count = (_Found * most)(), c_int()
        self._call("cublasLtMatmulPreferenceCreate", byref(preference))
        try:
            self._call("cublasLtMatmulPreferenceSetAttribute", preference, PREFERENCE_WORKSPACE, byref(size), 8)
            status = self._library.cublasLtMatmulAlgoGetHeuristic(
                self._handle, about.operation, about.weight, about.x, about.out, about.out, preference, most, found,
                byref(count),
            )  # fmt: skip
        finally:
            self._library.cublasLtMatmulPreferenceDestroy(preference)
        if status not in (0, NOT_SUPPORTED):
            raise CublasLtError(f"cublasLtMatmulAlgoGetHeuristic: status {status} for {product}")
        return [bytes(one.algorithm) for one in found[: count.value] if one.state == 0]

    def supports(self, product: Product, algorithm: bytes) -> bool:
        """Raises: CublasLtError."""
        about, found = self._describe(product), _Found()
        status = self._library.cublasLtMatmulAlgoCheck(
            self._handle, about.operation, about.weight, about.x, about.out, about.out,
            byref(_Algorithm.from_buffer_copy(algorithm)), byref(found),
        )  # fmt: skip
        return status == 0 and found.state == 0 and found.workspace <= WORKSPACE_BYTES

    def run(
        self,
        product: Product,
        algorithm: bytes,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        out: torch.Tensor,
        added: torch.Tensor | None = None,
    ) -> None:
        """On the current stream. All products share a workspace: those of two streams at once would not be right.

        Raises: CublasLtError.
        """
        about, c = self._describe(product), out if added is None else added
        self._set(about.operation, DESC_BIAS, c_void_p(bias.data_ptr()))
        self._call(
            "cublasLtMatmul", self._handle, about.operation, byref(c_float(1.0)), weight.data_ptr(), about.weight,
            x.data_ptr(), about.x, byref(c_float(added is not None)), c.data_ptr(), about.out, out.data_ptr(),
            about.out, byref(_Algorithm.from_buffer_copy(algorithm)), self._workspace.data_ptr(),
            WORKSPACE_BYTES, torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip

    def seconds(self, works: Sequence[Callable[[], None]]) -> list[float]:
        """How long each takes at least, with the weight out of the cache, as it is when its turn comes.

        Kernels are loaded at a work's first time: it has been done before.
        """
        events = []
        for work in [*works] * ROUNDS:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._workspace.zero_()  # and while it is written, the host gets ahead
            start.record()
            work()
            end.record()
            events.append((start, end))
        torch.cuda.current_stream().synchronize()
        times = [start.elapsed_time(end) / 1e3 for start, end in events]
        return [min(times[place :: len(works)]) for place in range(len(works))]

    def _new_description(self, product: Product) -> _Description:
        operation = c_void_p()
        self._call("cublasLtMatmulDescCreate", byref(operation), COMPUTE_FLOAT32, FLOAT32)
        self._set(operation, DESC_TRANSA, c_int(TRANSPOSE))
        self._set(operation, DESC_EPILOGUE, c_int(product.epilogue))
        self._set(operation, DESC_BIAS, c_void_p(self._workspace.data_ptr()))  # as aligned as the real one
        sides = (product.depth, product.width), (product.depth, product.rows), (product.width, product.rows)
        return _Description(operation, *(self._layout(*side) for side in sides))

    def _layout(self, rows: int, columns: int) -> c_void_p:
        made = c_void_p()
        self._call("cublasLtMatrixLayoutCreate", byref(made), BFLOAT16, rows, columns, rows)
        return made

    def _set(self, operation: c_void_p, name: int, value: Any) -> None:
        self._call("cublasLtMatmulDescSetAttribute", operation, name, byref(value), ctypes.sizeof(value))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise CublasLtError(f"{name}: status {status}")


SIGNATURES: dict[str, Sequence[Any]] = {
    "cublasLtCreate": [c_void_p],
    "cublasLtMatrixLayoutCreate": [c_void_p, c_int, c_uint64, c_uint64, c_int64],
    "cublasLtMatmulDescCreate": [c_void_p, c_int, c_int],
    "cublasLtMatmulDescSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatmulPreferenceCreate": [c_void_p],
    "cublasLtMatmulPreferenceSetAttribute": [c_void_p, c_int, c_void_p, c_size_t],
    "cublasLtMatmulPreferenceDestroy": [c_void_p],
    "cublasLtMatmulAlgoGetHeuristic": [c_void_p] * 7 + [c_int, c_void_p, c_void_p],
    "cublasLtMatmulAlgoCheck": [c_void_p] * 8,
    "cublasLtMatmul": [c_void_p] * 14 + [c_size_t, c_void_p],
}


def _load() -> ctypes.CDLL:
    """The one that torch has loaded, with its functions' arguments declared."""
    try:
        library = ctypes.CDLL(_loaded_path() or f"libcublasLt.so.{(torch.version.cuda or '').partition('.')[0]}")
        for name, types in SIGNATURES.items():
            getattr(library, name).argtypes = types
        library.cublasLtGetVersion.restype = c_size_t
    except (OSError, AttributeError) as error:
        raise CublasLtError(str(error)) from None
    return library


def _loaded_path() -> str | None:
    """Among the files that this process has mapped."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            return next((line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/libcublasLt.so" in line), None)
    except OSError:
        return None
