"""The ops that have kernels: their contract, and which implementation runs.

Each op is a folder: `reference.py` is the readable torch form, which runs anywhere; `kernel.py` the Triton form.
A backend is chosen once, at the start, and handed to the model; nothing falls back silently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch

from vl2.core.model_config import MoEConfig
from vl2.ops.attention.batch import AttentionBatch
from vl2.ops.experts.mixture import Mixture
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.native import builds
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.quantized_weight.weight import QuantizedLayout, QuantizedWeight
from vl2.ops.rope.table import RopeTable
from vl2.ops.rows import RowRounding
from vl2.ops.sampling.rows import SamplingRows
from vl2.ops.step.rows import DecodeRows, DecodeStart

NormAndRoute: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor | Mixture, torch.Tensor, float, torch.Tensor, torch.Tensor | None, MoEConfig],
    tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
]
"""(x, delta, the norm's weight and eps, the router's weight and bias, config) → as it says below."""

NormAndMix: TypeAlias = Callable[
    [
        torch.Tensor, torch.Tensor | Mixture, torch.Tensor, float, torch.Tensor, torch.Tensor | None, MoEConfig,
        ExpertWeights | QuantizedExperts,
    ],
    tuple[torch.Tensor, torch.Tensor, torch.Tensor | Mixture],
]  # fmt: skip
"""(x, delta, the norm's weight and eps, the router's weight and bias, config, experts) → as it says below."""


DecodeMLA: TypeAlias = Callable[
    [
        torch.Tensor, torch.Tensor, float, torch.Tensor, torch.Tensor, torch.Tensor, RopeTable, torch.Tensor,
        torch.Tensor, AttentionBatch, float,
    ],
    torch.Tensor,
]  # fmt: skip
"""(latent_and_key, norm_weight, eps, q, kv_b, pool, rope, positions, slots, batch, scale) → as of `attend_mla`."""


LinearOnto: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor | None]
"""(residual [..., Out], which may be overwritten, x [..., In], weight [Out, In], bias) → residual + x Wᵀ + b, rounded
once; None where this backend adds no residual to such a product: the norm that follows does."""


class Backend(Protocol):
    """A module with these functions (`ops/torch_backend.py`, `ops/triton_backend.py`).

    Unless said otherwise activations and weights share the model's dtype, results in float16 saturate, and sums are
    accumulated in float32. Axes: T tokens, Q query rows, H heads, K KV heads, D head size (Dn without rotation, Dr
    with, Dv of values), R latent rank, C hidden, E experts, A active ones, F their width.
    """

    NAME: str
    quantized_layout: QuantizedLayout

    def cut_patches(self, tiles: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Pixels as the rows of a matrix, from -1 to 1, channel-major as a convolution's weight. What fills no patch
        is dropped.

        tiles   [N, side, side, 3] uint8
        Returns [N, patches, ≥ 3 · size²] dtype; kernels fill rows up with zeros to a width that cuBLAS is fast with
        """
        ...

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x / sqrt(mean(x²) + eps) · weight, computed in float32.

        x       [..., C]  any float, rows may be strided
        weight  [C]
        Returns [..., C]  weight's dtype, contiguous
        """
        ...

    def add_rms_norm(
        self, x: torch.Tensor, delta: torch.Tensor | Mixture, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x + delta, its rms_norm): what follows each block of a pre-norm decoder.

        x       [T, C]  the residual stream: the model's dtype, float32 where that is float16
        delta   [T, C]  the model's dtype; or what this backend's `mix_experts` left to be added up
        Returns ([T, C] x's dtype, rounded to it before the norm; [T, C] weight's dtype)
        """
        ...

    def add_layer_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x + delta, its layer norm with eps 1e-6): what follows each block of the vision tower. No delta is zero.

        x       [..., W]  the residual stream: the model's dtype, float32 where that is float16
        delta   [..., W]  the model's dtype; broadcast along leading axes that it lacks
        Returns ([..., W] x's dtype, rounded to it before the norm; [..., W] weight's dtype), statistics in float32
        """
        ...

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x Wᵀ + b: [..., In] → [..., Out] x's dtype, not saturated.

        weight  [Out, In], on a CPU packed or not (ops/linear.py)
        """
        ...

    def linear_both(
        self, x: torch.Tensor, first: torch.Tensor, second: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same rows times two matrices, not saturated: [..., In] → [..., Out], [..., Out'].

        first, second  [Out, In] and [Out', In], not packed
        """
        ...

    def tower_linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`linear` of the vision tower, whose few shapes come again and again: each may have been measured."""
        ...

    @property
    def linear_onto(self) -> LinearOnto | None:
        """`linear` of rows [T, In] whose sums may begin with a residual."""
        ...

    @property
    def tower_linear_onto(self) -> LinearOnto | None:
        """`tower_linear` likewise."""
        ...

    def linear_gelu(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """gelu(x Wᵀ + b), the tanh form: [..., In] → [..., Out]."""
        ...

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) · up, the halves of the last axis: [..., 2F] → [..., F]."""
        ...

    def write_heads(
        self, qkv: torch.Tensor, rope: RopeTable, positions: torch.Tensor, slots: torch.Tensor, pool: torch.Tensor
    ) -> torch.Tensor:
        """MHA: rotate queries and keys (dimension i with i + D/2), write keys and values into their pages.

        qkv        [T, (H + 2K) · D]  queries, keys, values of each token
        rope       tables of all positions, [max positions, D/2] float32
        positions  [T] int64
        slots      [T] int64: page · page size + offset
        pool       [2, pages, page size, K, D]: keys, values
        Returns    [T, H, D] rotated queries
        """
        ...

    def write_latent(
        self,
        latent_and_key: torch.Tensor,
        norm_weight: torch.Tensor,
        eps: float,
        rope: RopeTable,
        positions: torch.Tensor,
        slots: torch.Tensor,
        pool: torch.Tensor,
    ) -> None:
        """MLA: norm the latent, rotate the shared key (dimension 2i with 2i + 1), write both into their page as a row.

        latent_and_key  [T, R + Dr], rows may be strided
        norm_weight     [R]
        pool            [pages, page size, R + Dr]; rope, positions and slots as in write_heads, tables [., Dr/2]
        """
        ...

    def attend_heads(self, q: torch.Tensor, pool: torch.Tensor, batch: AttentionBatch, scale: float) -> torch.Tensor:
        """Causal multi-head attention over pages (grouped where H > K).

        q        [Q, H, D]
        pool     [2, pages, page size, K, D]
        Returns  [Q, H, D] q's dtype; rows of no chunk are finite
        """
        ...

    def attend_mla(
        self,
        q: torch.Tensor,
        kv_b: torch.Tensor,
        pool: torch.Tensor,
        rope: RopeTable,
        positions: torch.Tensor,
        batch: AttentionBatch,
        scale: float,
    ) -> torch.Tensor:
        """Causal attention on latent rows, of which kv_b makes every head's keys and values.

        Absorbed, queries are taken into the latent space by the key half (and rounded), attend there with the rows as
        keys and values, and their results (rounded) are taken out by the value half. Expanded, the rows are taken out.

        q          [Q, H, Dn + Dr], not rotated
        kv_b       [H · (Dn + Dv), R]: of each head its key rows, then its value rows
        pool       [pages, page size, R + Dr]
        rope       tables as in write_latent
        positions  [Q] int64, of these queries
        Returns    [Q, H · Dv] q's dtype; rows of no chunk are finite
        """
        ...

    @property
    def decode_mla(self) -> DecodeMLA | None:
        """`write_latent` and `attend_mla` of rows that decode, where that is more than one after the other."""
        ...

    def route(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: MoEConfig
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose experts, in float32 throughout. Equal scores go to the lower expert id.

        x       [T, C]
        weight  [E, C] float32
        bias    [E] float32, of noaux_tc alone: it steers the choice and never enters the weights
        Returns ids [T, A], any integer dtype, best first; weights [T, A] float32
        """
        ...

    @property
    def norm_and_route(self) -> NormAndRoute | None:
        """`add_rms_norm` and `route` of the normed rows, where that is more than one after the other: (x + delta, its
        norm, ids, weights)."""
        ...

    def mix_experts(
        self,
        x: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        experts: ExpertWeights,
        rounding: RowRounding = RowRounding(),
    ) -> torch.Tensor | Mixture:
        """Σ_a weights[t, a] · down_e(swiglu(gate_up_e(x))) with e = ids[t, a], plus the shared experts' result.

        x         [T, C]
        ids       [T, A] as route gives them; weights [T, A] float32
        rounding  of the row count of each GEMM (ops/rows.py); the reference's alone
        Returns   [T, C] x's dtype; summed in float32, each expert's result rounded to the dtype before. Kernels leave
                  the sum to `add_rms_norm` or `add_up`
        """
        ...

    def logits(self, hidden: torch.Tensor, weight: torch.Tensor, is_exact: bool = True) -> torch.Tensor:
        """hidden [L, C], weight [V, C] → [L, V] float32, not rounded to the model's dtype (ops/logits.py)."""
        ...

    def quantized_linear(
        self,
        x: torch.Tensor,
        weight: QuantizedWeight,
        bias: torch.Tensor | None = None,
        rounding: RowRounding = RowRounding(),
    ) -> torch.Tensor:
        """x Wᵀ + b with W = code · scale, rounded to x's dtype or not: [..., K] → [..., N] x's dtype.

        rounding  of the row count (ops/rows.py); the reference's alone
        """
        ...

    def quantized_linear_both(
        self, x: torch.Tensor, first: QuantizedWeight, second: QuantizedWeight, rounding: RowRounding = RowRounding()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """quantized_linear of the same rows with two matrices: [..., K] → [..., N], [..., N']."""
        ...

    def quantized_logits(self, hidden: torch.Tensor, weight: QuantizedWeight, is_exact: bool = True) -> torch.Tensor:
        """hidden [L, C] → [L, V] float32, not rounded to hidden's dtype. The weight's scales are float32.

        is_exact  a row's bits must not depend on the number of rows; the reference's alone
        """
        ...

    def mix_quantized_experts(
        self,
        x: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        experts: QuantizedExperts,
        rounding: RowRounding = RowRounding(),
    ) -> torch.Tensor | Mixture:
        """mix_experts with quantised weights; each shared expert's result is rounded by itself.

        x         [T, C]
        ids       [T, A] as route gives them; weights [T, A] float32
        Returns   [T, C] x's dtype
        """
        ...

    @property
    def norm_and_mix(self) -> NormAndMix | None:
        """Of a single row `norm_and_route` and what its experts say (`mix_experts`, or `mix_quantized_experts`), where
        that is more than one after the other: (x + delta, its norm, the mixture)."""
        ...

    def begin_decode(
        self,
        step: DecodeRows,
        kept_tables: torch.Tensor,
        last_tokens: torch.Tensor,
        embedding: torch.Tensor,
        page_size: int,
    ) -> DecodeStart:
        """Look up what the device keeps of each sequence; its page for this token is added to its table first.

        kept_tables  [rows, max pages] int32, changed in place
        last_tokens  [rows] int64: the token sampled last, computed now
        embedding    [V, C]
        """
        ...

    def sample(self, logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
        """A token for each row: temperature → min-p, top-k → top-p → draw, or the best one, of equals the lowest id.

        The draw is inverse transform sampling over the kept tokens in order of probability, equal ones by id.

        logits   [L, V] float32
        Returns  [L] int64
        """
        ...


def choose_backend(device: torch.device, is_deterministic: bool = False) -> Backend:
    """Kernels on CUDA, of which a row's bits depend on the number of rows or not; else torch, where that is a matter
    of `RowRounding`, beside the native library if it was built.
    """
    if device.type == "cuda":
        from vl2.ops import exact_backend, triton_backend  # import Triton, which a CPU does not need

        return exact_backend if is_deterministic else triton_backend
    from vl2.ops import native_backend, torch_backend

    return torch_backend if device.type != "cpu" or builds.find()[0] is None else native_backend
