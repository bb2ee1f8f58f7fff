"""Parts of a prompt or a picture by the library, where it is faster than torch; the rest of them is torch's."""

from __future__ import annotations

import ctypes
import functools
import threading

import torch

from vl2.ops.native import library
from vl2.ops.native.structures import PromptAttention

AMX = "amx_bf16"
"""A word of /proc/cpuinfo. Torch's attention uses these units, the library does not."""


class Workers:
    """Threads of the library, for one call at a time."""

    def __init__(self, loaded: ctypes.CDLL, num_threads: int) -> None:
        self._library, self._lock = loaded, threading.Lock()
        self._handle = loaded.vl2_workers_new(num_threads)
        if self._handle is None:
            raise MemoryError("no memory for the native attention")

    def attend(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, is_causal: bool
    ) -> torch.Tensor:
        """q [Q, H, D], keys [context, K, D], values [context, K, Dv], bfloat16, D even → [Q, H, Dv].

        is_causal  the last query sees all of the context, the one before it one position less, …
        """
        (rows, heads, dim), (context, kv_heads, value_dim) = q.shape, values.shape
        assert keys.shape == (context, kv_heads, dim) and heads % kv_heads == 0 and dim % 2 == 0
        assert not is_causal or rows <= context
        assert all(x.dtype == torch.bfloat16 and x.stride(-1) == 1 for x in (q, keys, values))
        out = q.new_empty(rows, heads, value_dim)
        own = PromptAttention(
            *(x.data_ptr() for x in (q, keys, values, out)),
            *(rows, context, heads, kv_heads, dim, value_dim),
            *(stride for x in (q, keys, values, out) for stride in x.stride()[:2]),
            *(scale, is_causal),
        )
        with self._lock:
            if self._library.vl2_attend_prompt(self._handle, ctypes.byref(own)):
                raise MemoryError(f"no memory to attend to {context} positions")
        return out


def attention_workers(x: torch.Tensor) -> Workers | None:
    """None where torch's attention is the faster one, or the only one."""
    is_known = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.shape[-1] % 2 == 0
    return _workers(torch.get_num_threads()) if is_known else None


@functools.cache
def _workers(num_threads: int) -> Workers | None:
    path, _ = library.find()
    if path is None or AMX in library.processor_words():
        return None
    loaded = library.load(path)
    return Workers(loaded, num_threads) if hasattr(loaded, "vl2_attend_prompt") else None
