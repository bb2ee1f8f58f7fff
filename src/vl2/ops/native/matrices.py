"""Torch's weights as the library reads them: where they lie, in the layout that they have."""

from __future__ import annotations

import ctypes
import functools
import itertools
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vl2.ops.linear import pack
from vl2.ops.native.structures import BFLOAT16_BLOCKS, BFLOAT16_ROWS, FLOAT32_ROWS, INT4_BLOCKS, INT8_ROWS, Matrix
from vl2.ops.quantized_weight import torch_layout
from vl2.ops.quantized_weight.weight import QuantizedWeight

BLOCKS = (64, 48, 32, 16)
FILLINGS = (64, 32, 16, 2)
"""Of rows, and of the numbers in one, to whole multiples: what oneDNN is known to choose."""


def describe(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Matrix | None:
    """weight [Out, In] plain or packed (ops/linear.py), bias [Out] float32; None: a layout that is not known here.

    Both must stay where they are as long as the description is used, and torch have as many threads as when it packed.
    """
    out_width, in_width = weight.shape
    matrix = Matrix(out_width=out_width, in_width=in_width, padded_in=in_width)
    if weight.is_mkldnn:
        found = packed_layout(out_width, in_width, torch.get_num_threads())
        if found is None:
            return None
        matrix.block, matrix.padded_in = found
        if torch.ops.mkldnn._nbytes(weight) != 2 * -(-out_width // matrix.block) * matrix.block * matrix.padded_in:
            return None  # packed for another number of threads
        matrix.layout, matrix.data = BFLOAT16_BLOCKS, torch.ops.mkldnn.data_ptr(weight)
    else:
        assert weight.is_contiguous() and weight.dtype in (torch.float32, torch.bfloat16)
        matrix.layout = FLOAT32_ROWS if weight.dtype == torch.float32 else BFLOAT16_ROWS
        matrix.data = weight.data_ptr()
    return with_bias(matrix, bias)


@dataclass(frozen=True, slots=True)
class ExpertMatrices:
    """A MoE layer's packed weights, as `describe` them: of each expert, then of the shared ones as one."""

    gate_up: ctypes.Array[Matrix]
    down: ctypes.Array[Matrix]
    num_experts: int
    has_shared: bool


STRIP = 32
"""Columns that a prompt's experts are multiplied with at once; two of them down (source/strips.h)."""


def describe_experts(
    gate_up: Iterable[torch.Tensor | Matrix],
    down: Iterable[torch.Tensor | Matrix],
    shared_gate_up: torch.Tensor | Matrix | None,
    shared_down: torch.Tensor | Matrix | None,
) -> ExpertMatrices | None:
    """As `describe`; None: widths or a layout that the library's experts do not know. What is described stays so."""
    routed_ups, routed_downs = list(gate_up), list(down)
    has_shared = shared_gate_up is not None and shared_down is not None
    ups = _describe_strips([*routed_ups, *([] if shared_gate_up is None else [shared_gate_up])])
    downs = _describe_strips([*routed_downs, *([] if shared_down is None else [shared_down])])
    return None if ups is None or downs is None else ExpertMatrices(ups, downs, len(routed_ups), has_shared)


def have_strips(*shapes: torch.Size) -> bool:
    """Whether packed weights of these shapes are what `describe_experts` knows."""

    def has_strips(out_width: int, in_width: int) -> bool:
        found = packed_layout(out_width, in_width, torch.get_num_threads())
        return found is not None and found[0] % STRIP == in_width % STRIP == out_width % (2 * STRIP) == 0

    return all(has_strips(*shape) for shape in shapes)


def _describe_strips(weights: Sequence[torch.Tensor | Matrix]) -> ctypes.Array[Matrix] | None:
    array = (Matrix * len(weights))()
    for idx, weight in enumerate(weights):
        matrix = weight if isinstance(weight, Matrix) else describe_strips(weight)
        if matrix is None or matrix.out_width % (2 * STRIP):
            return None
        array[idx] = matrix
    return array


def describe_strips(
    weight: torch.Tensor, bias: torch.Tensor | None = None, are_rows_filled: bool = False
) -> Matrix | None:
    """As `describe`; None: not what prompts' products read (source/strips.h).

    are_rows_filled  with zeros, up to whole strips, where they are multiplied
    """
    matrix = describe(weight, bias)
    if matrix is None or matrix.layout != BFLOAT16_BLOCKS or matrix.block % STRIP:
        return None
    if matrix.padded_in % STRIP if are_rows_filled else matrix.in_width % STRIP:
        return None
    return matrix


def lay_in_blocks(weight: torch.Tensor) -> tuple[Matrix, torch.Tensor] | None:
    """A plain bfloat16 weight → a copy as prompts' products read it, whoever packs other ones; None: odd widths."""
    out_width, in_width = weight.shape
    if weight.dtype != torch.bfloat16 or in_width % STRIP:
        return None
    block, pairs = BLOCKS[0], in_width // 2
    filled = F.pad(weight, (0, 0, 0, -out_width % block)).view(torch.int32)
    laid = filled.view(-1, block, pairs).transpose(1, 2).contiguous()
    matrix = Matrix(out_width=out_width, in_width=in_width, padded_in=in_width, block=block, layout=BFLOAT16_BLOCKS)
    matrix.data = laid.data_ptr()
    return matrix, laid


def describe_quantized(weight: QuantizedWeight, bias: torch.Tensor | None = None) -> Matrix | None:
    """One matrix in the layout of ops/quantized_weight/torch_layout.py; as `describe`."""
    scheme, scales = weight.scheme, weight.scales
    is_known = scales.dtype in (torch.float32, torch.bfloat16) and platform.machine() == "x86_64"
    if not is_known or not weight.codes.is_contiguous() or not scales.is_contiguous():
        return None
    matrix = Matrix(out_width=weight.out_width, in_width=weight.in_width, group=scheme.group_size or weight.in_width)
    matrix.data, matrix.scales = weight.codes.data_ptr(), scales.data_ptr()
    matrix.has_bfloat16_scales = scales.dtype == torch.bfloat16
    if scheme.bits == 8:
        if weight.codes.dtype != torch.int8:
            return None
        matrix.layout = INT8_ROWS
    else:
        matrix.layout, matrix.block = INT4_BLOCKS, torch_layout.rows_together()
    return with_bias(matrix, bias)


def with_bias(matrix: Matrix, bias: torch.Tensor | None) -> Matrix:
    if bias is not None:
        assert bias.is_contiguous() and bias.dtype == torch.float32
        matrix.bias = bias.data_ptr()
    return matrix


@functools.cache
def packed_layout(out_width: int, in_width: int, num_threads: int) -> tuple[int, int] | None:
    """(block, `in_width` filled up) of what `pack` makes of a matrix; None: another layout than BFLOAT16_BLOCKS.

    oneDNN does not tell, so a matrix of this shape is packed and looked at. What it chooses depends on the number of
    threads, too, which must be torch's.
    """
    drawn = torch.Generator().manual_seed(0)
    plain = torch.randint(0x4000, (out_width, in_width), dtype=torch.int16, generator=drawn)  # finite and unlike
    packed = pack(plain.view(torch.bfloat16))
    size = torch.ops.mkldnn._nbytes(packed)
    pairs = torch.frombuffer(bytearray(ctypes.string_at(torch.ops.mkldnn.data_ptr(packed), size)), dtype=torch.int32)
    widths = {-(-in_width // filling) * filling for filling in FILLINGS}
    for block, width in itertools.product(BLOCKS, sorted(widths, reverse=True)):
        rows = -(-out_width // block) * block
        if rows * width != 2 * pairs.numel():
            continue
        filled = F.pad(plain, (0, width - in_width, 0, rows - out_width)).view(torch.int32)
        if torch.equal(filled.view(rows // block, block, width // 2).transpose(1, 2).flatten(), pairs):
            return block, width
    return None
