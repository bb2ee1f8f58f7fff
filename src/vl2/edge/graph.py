"""Writes one ONNX graph: nodes into memory, weights straight into a data file beside it.

Weights never lie in the protobuf, so no graph meets its limit of 2 GB, and never more than one is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str]

OPSET = 20
"""The oldest with Gelu; ONNX Runtime since 1.17 and TensorRT since 10.0 read it."""
IR_VERSION = 10
ALIGNMENT = 4096
"""Of each weight in the data file: a page, so that it can be mapped."""
INLINE_BYTES = 256
"""Smaller constants stay in the graph: shapes and scalars must be readable without the data file."""


class DataFile:
    """Weights of one graph, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, array: np.ndarray) -> tuple[int, int]:
        """(offset, length) in bytes."""
        self._file.write(bytes(-self._file.tell() % ALIGNMENT))
        offset = self._file.tell()
        array.tofile(self._file)
        return offset, array.nbytes


class Graph:
    """`op` adds a node and returns the names of what it gives. `precision`: one of `export.PRECISIONS`."""

    def __init__(self, name: str, data: DataFile, precision: str) -> None:
        self.name, self.precision, self._data = name, precision, data
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._known: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        self._count = 0

    @property
    def half(self) -> bool:
        return self.precision == "fp16"

    @property
    def float_type(self) -> int:
        """What products and attention are computed in."""
        return int(TensorProto.FLOAT16 if self.half else TensorProto.FLOAT)

    @property
    def float_dtype(self) -> Any:
        return np.float16 if self.half else np.float32

    # ---- values

    def input(self, name: str, dtype: int, dims: Dims) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, dims))
        return name

    def output(self, value: str, name: str, dtype: int, dims: Dims) -> str:
        """`value` bears this name from here on, and must not have been used before: an Identity would copy it."""
        node = next(node for node in reversed(self._nodes) if value in node.output)
        node.output[list(node.output).index(value)] = name
        self._outputs.append(helper.make_tensor_value_info(name, dtype, dims))
        return name

    def ints(self, *values: int) -> str:
        """A constant [n] int64."""
        return self._constant(np.asarray(values, np.int64))

    def scalar(self, value: float, dtype: Any = None) -> str:
        """A constant without axes, in the graph's float type unless said otherwise."""
        return self._constant(np.asarray(value, dtype or self.float_dtype))

    def _constant(self, array: np.ndarray) -> str:
        text = "_".join(map(str, array.ravel().tolist()))
        return self.weight(f"const/{array.dtype}/{array.ndim}/{text}", array)

    def weight(self, name: str, array: np.ndarray) -> str:
        """A constant under its name, in the type that it has; the same name is written once."""
        if name not in self._initializers:
            array = np.ascontiguousarray(array)
            if array.nbytes <= INLINE_BYTES:
                self._initializers[name] = numpy_helper.from_array(array, name)
            else:
                self._initializers[name] = self._external(name, array)
        return name

    def _external(self, name: str, array: np.ndarray) -> onnx.TensorProto:
        offset, length = self._data.append(array)
        proto = onnx.TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", self._data.path.name), ("offset", offset), ("length", length)):
            proto.external_data.add(key=key, value=str(value))
        return proto

    # ---- nodes

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one result."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, num_outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """A node with several results."""
        self._count += 1
        name = f"{kind}_{self._count}"
        outputs = [f"{name}:{idx}" for idx in range(num_outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, **attributes))
        return outputs

    def once(self, kind: str, num_outputs: int, *inputs: str) -> list[str]:
        """As `ops`, but of what was asked for before in this branch the results that are there."""
        key = (kind, inputs)
        if key not in self._known:
            self._known[key] = self.ops(kind, num_outputs, *inputs)
        return self._known[key]

    def either(self, condition: str, yes: Callable[[], str], no: Callable[[], str], dtype: int) -> str:
        """The result of one of two branches, which may use every value of this graph; only that one is computed."""
        branches = [self._branch(f"{kind}_{self._count}", build, dtype) for kind, build in (("yes", yes), ("no", no))]
        return self.op("If", condition, then_branch=branches[0], else_branch=branches[1])

    def _branch(self, name: str, build: Callable[[], str], dtype: int) -> onnx.GraphProto:
        with self._collecting() as nodes:
            result = build()
        output = helper.make_empty_tensor_value_info(result)
        output.type.tensor_type.elem_type = dtype
        return helper.make_graph(nodes, name, [], [output])

    @contextmanager
    def _collecting(self) -> Iterator[list[onnx.NodeProto]]:
        nodes, known = self._nodes, self._known
        self._nodes, self._known = [], {}
        try:
            yield self._nodes
        finally:
            self._nodes, self._known = nodes, known

    # ---- shorthands

    def reshape(self, x: str, *dims: int) -> str:
        """0 keeps an axis, -1 is computed."""
        return self.op("Reshape", x, self.ints(*dims))

    def transpose(self, x: str, *perm: int) -> str:
        return self.op("Transpose", x, perm=perm)

    def split(self, x: str, *sizes: int, axis: int = -1) -> list[str]:
        return self.ops("Split", len(sizes), x, self.ints(*sizes), axis=axis)

    def concat(self, *parts: str, axis: int = -1) -> str:
        return self.op("Concat", *parts, axis=axis)

    def take(self, x: str, rows: str) -> str:
        """Rows of the first axis."""
        return self.op("Gather", x, rows, axis=0)

    def cast(self, x: str, dtype: int) -> str:
        return self.op("Cast", x, to=dtype)

    def length(self, x: str) -> str:
        """Of the first axis: [1] int64."""
        return self.op("Shape", x, start=0, end=1)

    def model(self, metadata: dict[str, str]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, list(self._initializers.values())
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="vl2"
        )
        helper.set_model_props(model, metadata)
        return model
