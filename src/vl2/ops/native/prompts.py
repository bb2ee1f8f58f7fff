"""Parts of a prompt or a picture by the library, where it is faster than torch; the rest of them is torch's.

A row's bits depend on that row alone.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Sequence

import numpy as np
import torch

from vl2.ops.native import builds
from vl2.ops.native.matrices import STRIP, ExpertMatrices, describe
from vl2.ops.native.structures import (
    DecoderJob,
    ExpertsJob,
    HeadsJob,
    LatentJob,
    LinearJob,
    Matrix,
    Model,
    NormJob,
    ProjectorJob,
    PromptAttention,
    RouterJob,
    RowsJob,
    TowerJob,
)
from vl2.ops.rope.table import RopeTable


class Workers:
    """Threads of the library, for one call at a time."""

    def __init__(self, loaded: ctypes.CDLL, num_threads: int) -> None:
        self._library, self._lock = loaded, threading.Lock()
        self.mixes_experts = hasattr(loaded, "vl2_mix_experts")
        self.multiplies = hasattr(loaded, "vl2_linear_rows") and hasattr(loaded, "vl2_project_rows")
        self._handle = loaded.vl2_workers_new(num_threads)
        if self._handle is None:
            raise MemoryError("no memory for native prompts")
        self.attends = hasattr(loaded, "vl2_attend_prompt")
        self.decodes = hasattr(loaded, "vl2_decode_prompt")

    def attend(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, is_causal: bool
    ) -> torch.Tensor:
        """q [Q, H, D], keys [context, K, D], values [context, K, Dv], bfloat16, D even → [Q, H, Dv].

        is_causal  the last query sees all of the context, the one before it one position less, …
        """
        return self._attend(q, keys, values, len(keys), PromptAttention(scale=scale, is_causal=is_causal))

    def attend_pages(
        self, q: torch.Tensor, pool: torch.Tensor, block_table: torch.Tensor, context: int, scale: float
    ) -> torch.Tensor:
        """The same, causal, with keys and values where they lie: pool [2, pages, page size, K, D], page size a multiple
        of 16, block_table [at least what the context takes] int32."""
        assert block_table.dtype == torch.int32 and block_table.is_contiguous() and pool.shape[2] % 16 == 0
        own = PromptAttention(scale=scale, is_causal=True, pages=block_table.data_ptr(), page_size=pool.shape[2])
        keys, values = pool.flatten(1, 2)
        return self._attend(q, keys, values, context, own)

    def _attend(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, context: int, own: PromptAttention
    ) -> torch.Tensor:
        (rows, heads, dim), (kv_heads, value_dim) = q.shape, values.shape[1:]
        assert keys.shape[1:] == (kv_heads, dim) and heads % kv_heads == 0 and dim % 2 == 0
        assert not own.is_causal or rows <= context
        assert all(x.dtype == torch.bfloat16 and x.stride(-1) == 1 for x in (q, keys, values))
        out = q.new_empty(rows, heads, value_dim)
        own.q, own.keys, own.values, own.out = (x.data_ptr() for x in (q, keys, values, out))
        own.rows, own.context, own.heads, own.kv_heads = rows, context, heads, kv_heads
        own.dim, own.value_dim = dim, value_dim
        own.q_row, own.q_head, own.key_row, own.key_head = *q.stride()[:2], *keys.stride()[:2]
        own.value_row, own.value_head, own.out_row, own.out_head = *values.stride()[:2], *out.stride()[:2]
        self._call("vl2_attend_prompt", own)
        return out

    def swiglu(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """silu(gate) · up of all rows of all parts, [rows, 2F] each → [all rows, F]."""
        addresses, width = row_addresses(parts), parts[0].shape[1] // 2
        out = parts[0].new_empty(len(addresses), width)
        self._rows("vl2_swiglu_rows", out, addresses)
        return out

    def mix(
        self, parts: Sequence[torch.Tensor], rows: np.ndarray, weights: torch.Tensor, others: torch.Tensor | None
    ) -> torch.Tensor:
        """Σ_a weights[t, a] · (row rows[t, a] of the parts [rows, C] as one) + others[t] → [T, C], rounded once.

        weights  [T, A] float32
        """
        assert weights.dtype == torch.float32 and weights.is_contiguous() and weights.numel() == rows.size
        out = parts[0].new_empty(len(weights), parts[0].shape[1])
        added = None if others is None else row_addresses([others])
        addresses = row_addresses(parts)[rows]
        self._rows("vl2_mix_rows", out, addresses, added, weights=weights.data_ptr(), choices=weights.shape[1])
        return out

    def mix_experts(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: ExpertMatrices
    ) -> torch.Tensor:
        """`Backend.mix_experts` (ops/backend.py) of bfloat16 rows."""
        assert x.dtype == torch.bfloat16 and ids.dtype == torch.int64 and weights.dtype == torch.float32
        given = (x.contiguous(), ids.contiguous(), weights.contiguous())
        out = torch.empty_like(given[0])
        if len(x):
            matrices = (ctypes.addressof(experts.gate_up), ctypes.addressof(experts.down))
            own = ExpertsJob(*(tensor.data_ptr() for tensor in given), *matrices, out.data_ptr())
            own.tokens, own.width, own.x_row, own.choices = *x.shape, x.shape[1], ids.shape[1]
            own.num_experts, own.has_shared = experts.num_experts, experts.has_shared
            self._call("vl2_mix_experts", own)
        return out

    def linear(self, x: torch.Tensor, matrix: Matrix, is_gelu: bool) -> torch.Tensor:
        """x [T, In] bfloat16, `matrix` in blocks, of 16 or 12 bits → [T, Out], rounded once."""
        return self._linear("vl2_linear_rows", x, matrix, torch.bfloat16, is_gelu)

    def project(self, x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        """The same → float32, not rounded: what a step of decoding computes, bit by bit."""
        return self._linear("vl2_project_rows", x, matrix, torch.float32)

    def _linear(
        self, name: str, x: torch.Tensor, matrix: Matrix, dtype: torch.dtype, is_gelu: bool = False
    ) -> torch.Tensor:
        assert x.dtype == torch.bfloat16 and 0 <= x.shape[1] - matrix.in_width < STRIP and x.stride(1) == 1
        out = x.new_empty(len(x), matrix.out_width, dtype=dtype)
        own = LinearJob(x=x.data_ptr(), out=out.data_ptr(), weight=matrix, rows=len(x), x_row=x.stride(0))
        own.out_row, own.gelu = out.stride(0), is_gelu
        if len(x):
            self._call(name, own)
        return out

    def route(
        self, x: torch.Tensor, router: torch.Tensor, bias: torch.Tensor | None, choice: Model
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`Backend.route` (ops/backend.py); `choice` as of `describe_choice`."""
        assert x.stride(1) == 1 and router.dtype == torch.float32 and x.shape[1] == router.shape[1]
        matrix = describe(router, None)
        assert matrix is not None
        ids = torch.empty(len(x), choice.num_active, dtype=torch.int64)
        weights = torch.empty(len(x), choice.num_active)
        own = RouterJob(x=x.data_ptr(), router=matrix, rows=len(x), x_row=x.stride(0), choice=ctypes.addressof(choice))
        own.bias, own.is_bfloat16 = None if bias is None else bias.data_ptr(), x.dtype == torch.bfloat16
        own.ids, own.weights = ids.data_ptr(), weights.data_ptr()
        self._call("vl2_route_rows", own)
        return ids, weights

    def decode(self, own: DecoderJob) -> None:
        """All layers of a decoder: source/prompt_layers.c."""
        self._call("vl2_decode_prompt", own)

    def encode(self, own: TowerJob) -> None:
        """The vision tower: source/prompt_tower.c."""
        self._call("vl2_encode_tiles", own)

    def project_tiles(self, own: ProjectorJob) -> None:
        """The projector: source/prompt_projector.c."""
        self._call("vl2_project_tiles", own)

    def add_norm(
        self,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
        bias: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x, delta [T, C], weight and bias [C], one dtype → (x + delta rounded, its layer norm; RMS without a bias)."""
        out, sums = x.new_empty(x.shape), x if delta is None else x.new_empty(x.shape)
        floats = [None if part is None else part.float() for part in (weight, bias)]  # kept until the call is done
        own = NormJob(x=x.data_ptr(), sums=sums.data_ptr(), out=out.data_ptr(), eps=eps)
        own.weights, own.bias = (None if part is None else part.data_ptr() for part in floats)
        own.rows, own.width, own.x_row, own.out_row = *x.shape, x.stride(0), x.shape[1]
        own.is_bfloat16 = x.dtype == torch.bfloat16
        if delta is not None:
            own.delta, own.delta_row = delta.data_ptr(), delta.stride(0)
        assert all(part is None or part.stride(1) == 1 for part in (x, delta))
        self._call("vl2_norm_rows", own)
        return sums, out

    def write_heads(
        self, qkv: torch.Tensor, rope: RopeTable, positions: torch.Tensor, slots: torch.Tensor, pool: torch.Tensor
    ) -> torch.Tensor:
        """`Backend.write_heads` (ops/backend.py) for a pool of qkv's dtype."""
        kv_heads, dim = pool.shape[3:]
        heads = qkv.shape[1] // dim - 2 * kv_heads
        assert qkv.stride(1) == 1 and pool.is_contiguous() and pool.dtype == qkv.dtype
        assert all(x.is_contiguous() for x in (positions, slots, rope.cos, rope.sin))
        q = qkv.new_empty(len(qkv), heads, dim)
        given = (qkv, q, pool, rope.cos, rope.sin, positions, slots)
        own = HeadsJob(
            *(x.data_ptr() for x in given),
            *(len(qkv), qkv.stride(0), heads, kv_heads, dim, pool.shape[1] * pool.shape[2]),
            qkv.dtype == torch.bfloat16,
        )
        self._call("vl2_write_heads", own)
        return q

    def write_latent(
        self,
        rows: torch.Tensor,
        norm_weight: torch.Tensor,
        eps: float,
        rope: RopeTable,
        positions: torch.Tensor,
        slots: torch.Tensor,
        pool: torch.Tensor,
    ) -> None:
        """`Backend.write_latent` (ops/backend.py) for a pool of the rows' dtype."""
        rank, rope_dim = len(norm_weight), 2 * rope.cos.shape[1]
        assert pool.is_contiguous() and pool.shape[-1] == rank + rope_dim == rows.shape[1] and slots.is_contiguous()
        own = self._latent_job(rows, rope, positions, pool)
        floats = norm_weight.float()  # kept until the call is done
        own.weights, own.slots, own.rank, own.eps = floats.data_ptr(), slots.data_ptr(), rank, eps
        self._call("vl2_write_latent", own)

    def rotate_queries(self, q: torch.Tensor, rope: RopeTable, positions: torch.Tensor) -> torch.Tensor:
        """q [T, H, D] without gaps in a row, D ending in what is rotated in pairs → the same rotated, without gaps."""
        out = q.new_empty(q.shape)
        own = self._latent_job(q.flatten(1), rope, positions, out)
        own.heads, own.head_width = q.shape[1:]
        self._call("vl2_rotate_queries", own)
        return out

    @staticmethod
    def _latent_job(x: torch.Tensor, rope: RopeTable, positions: torch.Tensor, out: torch.Tensor) -> LatentJob:
        assert x.stride(1) == 1 and x.dtype == out.dtype and positions.dtype == torch.int64
        assert all(tensor.is_contiguous() for tensor in (positions, rope.cos, rope.sin))
        given = dict(x=x, out=out, cos=rope.cos, sin=rope.sin, positions=positions)
        own = LatentJob(**{name: tensor.data_ptr() for name, tensor in given.items()})
        own.rows, own.x_row, own.rope_dim = len(x), x.stride(0), 2 * rope.cos.shape[1]
        own.is_bfloat16 = x.dtype == torch.bfloat16
        return own

    def _rows(
        self,
        name: str,
        out: torch.Tensor,
        addresses: np.ndarray,
        added: np.ndarray | None = None,
        **fields: float | None,
    ) -> None:
        own = RowsJob(rows=len(out), width=out.shape[1], is_bfloat16=out.dtype == torch.bfloat16, **fields)
        own.from_rows, own.out = addresses.ctypes.data, out.data_ptr()
        own.others = None if added is None else added.ctypes.data
        self._call(name, own)

    def _call(self, name: str, own: ctypes.Structure) -> None:
        with self._lock:
            if getattr(self._library, name)(self._handle, ctypes.byref(own)):
                raise MemoryError("no memory for a prompt's rows")


def row_addresses(parts: Sequence[torch.Tensor]) -> np.ndarray:
    """Where each row lies; parts [rows, width], rows without gaps."""
    assert all(part.stride(1) == 1 for part in parts)
    ranges = [(part.data_ptr(), len(part), part.stride(0) * part.element_size()) for part in parts]
    each = [np.arange(start, start + rows * stride, stride) for start, rows, stride in ranges]
    return np.concatenate(each) if len(each) > 1 else each[0]


DTYPES = (torch.float32, torch.bfloat16)


def present_workers() -> Workers:
    """For what was described to the library, which is there then: as many as the step has (engine/threads.py)."""
    own = workers(torch.get_num_threads())
    assert own is not None
    return own


def row_workers(x: torch.Tensor) -> Workers | None:
    """For what is done row by row; None: it is torch's."""
    return workers(torch.get_num_threads()) if x.device.type == "cpu" and x.dtype in DTYPES else None


def attention_workers(x: torch.Tensor) -> Workers | None:
    """x [..., D]; None where torch's attention is the faster one, or the only one."""
    found = row_workers(x) if x.dtype == torch.bfloat16 and x.shape[-1] % 2 == 0 else None
    return found if found is not None and found.attends else None


@functools.cache
def workers(num_threads: int) -> Workers | None:
    """None: there is no library."""
    path, _ = builds.find()
    return None if path is None else Workers(builds.load(path), num_threads)
