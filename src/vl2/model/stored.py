"""A linear's weight as checkpoints hold it: one tensor of floats, or several of codes and scales.

plain   weight
packed  weight_packed [N, K · bits / 32], weight_scale [N, G], weight_shape; also weight_zero_point, weight_g_idx
        (compressed-tensors)
GPTQ    qweight [K · bits / 32, N], scales [G, N], qzeros [G, N · bits / 32], g_idx [K]
fp8     weight float8 [N, K], weight_scale of all, of rows or of blocks, or weight_scale_inv [⌈N / 128⌉, ⌈K / 128⌉]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from vl2.checkpoint.folder import BlockReader, TensorInfo
from vl2.core.errors import CheckpointError
from vl2.core.quantization import Quantization, StoredScheme, WeightScheme
from vl2.core.quantization_default import ROUND_TO_NEAREST
from vl2.ops.quantized_weight.codes import dequantize_codes, unpack_codes

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
}
FLOATS = ("F64", "F32", "BF16", "F16")
PACKED, GPTQ = "weight_packed", "qweight"
PARTS = (
    PACKED, "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "weight_scale_inv",
    GPTQ, "qzeros", "scales", "g_idx",
)  # fmt: skip
IGNORED_PARTS = ("input_scale", "output_scale", "k_scale", "v_scale")
"""Of activations in few bits, which we keep in 16."""


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """`name` is the official one, …weight; `parts` are its tensors by the last word of their names."""

    name: str
    parts: dict[str, TensorInfo]

    @property
    def main(self) -> TensorInfo:
        return self.parts.get(PACKED) or self.parts.get(GPTQ) or self.parts["weight"]

    @property
    def scale(self) -> TensorInfo:
        """Of float8."""
        return self.parts.get("weight_scale_inv") or self.parts["weight_scale"]

    @property
    def is_plain(self) -> bool:
        return set(self.parts) == {"weight"} and self.main.dtype != "F8_E4M3"

    @property
    def linear(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def num_bytes(self) -> int:
        return sum(info.num_bytes for info in self.parts.values())


def group_tensors(infos: Iterable[TensorInfo]) -> dict[str, StoredWeight]:
    """Tensors of a checkpoint → weights by their official names."""
    found: dict[str, StoredWeight] = {}
    for info in infos:
        module, _, last = info.name.rpartition(".")
        if last not in IGNORED_PARTS:
            name, part = (f"{module}.weight", last) if last in PARTS else (info.name, "weight")
            found.setdefault(name, StoredWeight(name, {})).parts[part] = info
    return found


def check_stored(stored: StoredWeight, shape: tuple[int, ...], quantization: Quantization | None) -> None:
    """Raises: CheckpointError when a weight has not the shape that config.json asks for, or lacks a tensor."""
    main, wanted = stored.main, shape
    if PACKED in stored.parts or GPTQ in stored.parts:
        scheme = _scheme_of(stored, quantization)
        words = shape[1] * scheme.bits // 32
        wanted = (shape[0], words) if PACKED in stored.parts else (words, shape[0])
        needed = {"weight_scale"} if PACKED in stored.parts else {"scales", "qzeros"}
        if not scheme.is_ordered:
            needed.add("weight_g_idx" if PACKED in stored.parts else "g_idx")
        if not scheme.is_symmetric and PACKED in stored.parts:
            needed.add("weight_zero_point")
    else:
        needed = {"weight_scale_inv" if "weight_scale_inv" in stored.parts else "weight_scale"}
        needed = needed if main.dtype == "F8_E4M3" else set()
        if main.dtype not in (*FLOATS, "F8_E4M3"):
            raise CheckpointError(f"{main.file}: {main.name} has type {main.dtype}; weights must be F32, BF16 or F16")
    if main.shape != wanted:
        raise CheckpointError(
            f"{main.file}: {main.name} has shape {list(main.shape)}, but config.json asks for {list(wanted)}"
        )
    absent = sorted(needed - set(stored.parts))
    if absent:
        raise CheckpointError(f"{main.file}: {main.name} has no {absent[0]} beside it; download the checkpoint again")


def _scheme_of(stored: StoredWeight, quantization: Quantization | None) -> StoredScheme:
    scheme = None if quantization is None else quantization.stored(stored.linear)
    if scheme is None or scheme.is_float:
        raise CheckpointError(
            f"{stored.main.file}: {stored.main.name} is quantised, but config.json's quantization_config "
            f"does not say how; is config.json of another checkpoint?"
        )
    return scheme


class WeightReader:
    """Reads weights of any form. Raises: CheckpointError."""

    def __init__(self, reader: BlockReader, quantization: Quantization | None) -> None:
        self.reader, self.quantization = reader, quantization

    def tensor(self, info: TensorInfo, first_row: int = 0, num_rows: int | None = None) -> torch.Tensor:
        """All of a tensor, or rows of its first axis."""
        rows = (info.shape[0] if info.shape else 1) if num_rows is None else num_rows
        row_bytes = info.num_bytes // max(1, info.shape[0] if info.shape else 1)
        data = self.reader.read(info, first_row * row_bytes, rows * row_bytes)
        shape = (rows, *info.shape[1:]) if info.shape else ()
        return torch.frombuffer(data, dtype=TORCH_DTYPES[info.dtype]).view(shape)

    def rounded_to(self, stored: StoredWeight) -> WeightScheme | None:
        """The float8 that a weight in 16 or 32 bits stands for once it is loaded, even where it is held in as many."""
        is_linear = stored.is_plain and len(stored.main.shape) == 2
        if not is_linear or self.quantization is None or self.quantization.method != ROUND_TO_NEAREST:
            return None
        scheme = self.quantization.scheme_of(stored.linear)
        return scheme if scheme is not None and scheme.is_float else None

    def codes(self, stored: StoredWeight) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a computable scheme: codes [N, K] int8 or float8 and scales [N, G]."""
        if stored.main.dtype == "F8_E4M3":
            scale = self.tensor(stored.scale).float().reshape(-1, 1)
            return self.tensor(stored.main), scale.expand(stored.main.shape[0], 1)
        scheme = _scheme_of(stored, self.quantization)
        codes, scales, zeros = self._integers(stored, scheme)
        if zeros is not None and bool(zeros.any()):
            raise CheckpointError(
                f"{stored.main.file}: {stored.main.name} has zero points, but config.json says that it is symmetric"
            )
        return codes, scales

    def dense(self, stored: StoredWeight) -> torch.Tensor:
        """[N, K] in a floating-point type."""
        if GPTQ in stored.parts or PACKED in stored.parts:
            scheme = _scheme_of(stored, self.quantization)
            codes, scales, zeros = self._integers(stored, scheme)
            order = stored.parts.get("g_idx") or stored.parts.get("weight_g_idx")
            if (zeros is None or not bool(zeros.any())) and scheme.is_ordered:
                return dequantize_codes(codes, scales)
            zeros = torch.zeros_like(scales) if zeros is None else zeros.to(scales.dtype)
            size = codes.shape[1] // scales.shape[1]
            has_order = order is not None and not scheme.is_ordered
            group = self.tensor(order).long() if order and has_order else torch.arange(codes.shape[1]) // size
            return (codes.to(scales.dtype) - zeros[:, group]) * scales[:, group]
        weight = self.tensor(stored.main)
        if stored.main.dtype != "F8_E4M3":
            return weight
        return _scale_blocks(weight.float(), self.tensor(stored.scale).float())

    def _integers(
        self, stored: StoredWeight, scheme: StoredScheme
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Signed codes [N, K], scales [N, G], zero points [N, G] or None."""
        bits = scheme.bits
        if PACKED in stored.parts:
            zero_info = stored.parts.get("weight_zero_point")
            zeros = None if zero_info is None else unpack_codes(self.tensor(zero_info).T, bits).T
            scales = self.tensor(stored.parts["weight_scale"])
            return unpack_codes(self.tensor(stored.main), bits), scales.view(len(scales), -1), zeros
        zeros = unpack_codes(self.tensor(stored.parts["qzeros"]), bits).T
        if self.quantization is not None and self.quantization.has_zero_minus_one:
            zeros = zeros.to(torch.int16) + 1
        codes = unpack_codes(self.tensor(stored.main).T, bits)
        return codes, self.tensor(stored.parts["scales"]).T.contiguous(), zeros


def _scale_blocks(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """weight [N, K] times a scale of all, of rows [N, 1] or of blocks [⌈N / b⌉, ⌈K / c⌉]; b and c are powers of two."""
    if scale.numel() == 1:
        return weight * scale.reshape(())
    if scale.shape[0] == weight.shape[0] and scale[0].numel() == 1:
        return weight * scale.view(-1, 1)
    sizes = [
        1 << (-(-length // count) - 1).bit_length() for length, count in zip(weight.shape, scale.shape, strict=True)
    ]
    wide = scale.repeat_interleave(sizes[0], 0).repeat_interleave(sizes[1], 1)
    return weight * wide[: weight.shape[0], : weight.shape[1]]
