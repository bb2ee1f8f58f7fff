"""x Wᵀ + b, with a weight as it is or packed: laid out once as oneDNN's kernels read it.

Given a plain bfloat16 weight, oneDNN copies it into that layout in every call, which for few rows takes as long as the
product itself. A packed weight is opaque: it keeps its shape and type, but only `multiply` can read it. The bits are
those of the plain product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

PACKED_FOR_ROWS = 16
"""The layout is the best for so many rows and good for any number; for 1 it would not be."""
MOST_JOINED_ROWS = 256
"""Of a GPU's product with two weights that lie together. More are a prompt's, whose attention wants queries side by
side: copying them takes longer than a second product.
"""


def can_pack(weight: torch.Tensor) -> bool:
    """Whether this build of torch multiplies with packed weights of this type on this device."""
    return (
        weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def pack(weight: torch.Tensor) -> torch.Tensor:
    """weight [Out, In] → the same, opaque."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)
    return packed


def multiply_gelu(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gelu(x Wᵀ + b), the tanh form, rounded once."""
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "gelu", [], "tanh")
    return out


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., In], weight [Out, In] packed or not → [..., Out]."""
    if not weight.is_mkldnn:
        return F.linear(x, weight, bias)
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def multiply_both(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same rows times two weights that are not packed."""
    return F.linear(x, first), F.linear(x, second)


def multiply_joined(
    x: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `multiply_both`; of few rows one product, where the weights lie together, with strided rows then."""
    together = joined(first, second) if x.numel() <= MOST_JOINED_ROWS * x.shape[-1] else None
    if together is None:
        return multiply(x, first), multiply(x, second)
    out = multiply(x, together)
    return out[..., : len(first)], out[..., len(first) :]


def joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor | None:
    """[N, K] and [M, K] → both [N + M, K], if the second lies right behind the first (`model.linear.lie_together`)."""
    is_one_piece = first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    follows = second.storage_offset() == first.storage_offset() + first.numel()
    if not (is_one_piece and follows and first.is_contiguous() and second.is_contiguous()):
        return None
    return first.as_strided((len(first) + len(second), first.shape[1]), first.stride())
