"""The graph builder, with which layers add their ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bridge.errors import UnsupportedLayerError
from bridge.files.atomic import pieces
from bridge.onnx_export.dims import Dims
from bridge.schema import Blob, Layer, Shape

HALF_MAX = 65504.0
"""The largest number in float16."""

CUSTOM_DOMAIN = "org.weightbridge"
"""The domain of nodes that standard ONNX does not have."""


@dataclass
class OnnxNode:
    """One ONNX node, before it becomes a protobuf message, with the name of its layer.

    ``float32`` says that a float16 export keeps the node in float32.
    """

    op_type: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    domain: str = ""
    layer: str = ""
    float32: bool = False


@dataclass
class OnnxInitializer:
    """A constant of the graph: values in memory, or a blob whose values stay in their file."""

    shape: Shape
    values: Blob
    roles: list[tuple[int, str]] = field(default_factory=list)
    """(index of the layer, role) of each blob that it holds."""
    float_type: np.dtype = field(default=np.dtype(np.float32))
    """The type in which floating-point values are written; Caffe computes in float32."""
    transposed: bool = False
    """Whether the two axes of the blob are exchanged."""

    @property
    def dtype(self) -> np.dtype:
        """The type that is written."""
        return self.float_type if self.values.dtype.kind == "f" else self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that are written."""
        return self.values.size * self.dtype.itemsize

    def numpy(self) -> np.ndarray:
        """The values in the shape and dtype that are written."""
        return _as_type(self.values.numpy(), self.dtype).reshape(self.shape)

    def parts(self) -> Iterator[np.ndarray]:
        """The values as they are stored, flat, in pieces."""
        for piece in pieces(self.values):
            yield np.frombuffer(piece, self.values.dtype.newbyteorder("<"))

    def written(self) -> Iterator[np.ndarray]:
        """The values as they are written, flat, in pieces."""
        for part in self.parts():
            yield _as_type(part, self.dtype.newbyteorder("<"))

    def pieces(self) -> Iterator[memoryview]:
        """The bytes that are written, in pieces."""
        for part in self.written():
            yield part.view(np.uint8).data

    def turned(self) -> OnnxInitializer:
        """The transpose of one of two axes; it is made when it is written."""
        blob = Blob(self.shape[::-1], self.values.dtype, lambda: _transpose(self.values, self.shape))
        return OnnxInitializer(self.shape[::-1], blob, self.roles, self.float_type, not self.transposed)


def _transpose(values: Blob, shape: Shape) -> np.ndarray:
    return np.ascontiguousarray(values.numpy().reshape(shape).T)


def _as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values in another type; values too large for float16 become its largest."""
    with np.errstate(over="ignore"):
        made = values.astype(dtype, copy=False)
    if dtype.itemsize == 2 and values.dtype.itemsize > 2 and np.isinf(made).any():
        return np.where(np.isinf(values), made, np.clip(made, -HALF_MAX, HALF_MAX).astype(dtype))
    return made


class GraphBuilder:
    """Collects nodes and initializers. Operators are methods: ``g.Relu(x)`` adds a node.

    A method call adds a node of one output and returns its name; :meth:`op` serves
    several outputs and other domains. Inputs that are ``""`` are left out, as in ONNX.

    Attributes:
        opset: The version of the default operator set.
        allow_custom: Whether nodes of CUSTOM_DOMAIN may stand for what standard ONNX cannot say.
        notes: Remarks for the user, one line each.
        nodes: In order.
        initializers: By name.
        merged: (index of the layer, role, value) of each blob that went into others, with which it has that value.
    """

    FLOAT, INT64 = 1, 7
    """ONNX's numbers of element types, for ``Cast``."""

    def __init__(self, opset: int, *, allow_custom: bool = False) -> None:
        self.opset, self.allow_custom = opset, allow_custom
        self.notes: list[str] = []
        self.nodes: list[OnnxNode] = []
        self.initializers: dict[str, OnnxInitializer] = {}
        self.domains: set[str] = set()
        self.merged: list[tuple[int, str, float]] = []
        self.shapes: dict[str, Dims] = {}
        self._layer: Layer | None = None
        self._index = 0
        self._taken: dict[str, int] = {}  # name -> the number to try next behind it
        self._blobs: dict[tuple[int, Shape], str] = {}
        self._constants: dict[tuple[str, Shape, bytes], str] = {}

    def begin(self, index: int, layer: Layer | None) -> None:
        """Nodes that are added from now on belong to ``layer``, the net's layer ``index``, or to no layer."""
        self._layer, self._index = layer, index

    def unique(self, name: str) -> str:
        """``name``, followed by a number if it is taken."""
        chosen = name
        while chosen in self._taken:
            chosen = f"{name}_{self._taken[name]}"
            self._taken[name] += 1
        self._taken[chosen] = 1
        return chosen

    def __getattr__(self, op_type: str) -> Callable[..., str]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.op(op_type, *inputs, **attributes)[0]

    def op(self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node.

        Args:
            op_type: The operator.
            inputs: Value names.
            outputs: How many outputs it has.
            domain: The operator's domain; the default is ONNX's own.
            attributes: Numbers, text, arrays, or lists of them.

        Returns:
            The names of its outputs.
        """
        # What belongs to no layer is preprocessing, whose numbers are as large as a picture's.
        owner, float32 = (self._layer.name, self._layer.needs_float32) if self._layer else ("", True)
        names = [self.unique(f"{owner}/{op_type}" if owner else op_type) for _ in range(outputs)]
        clean = {name: value for name, value in attributes.items() if value is not None}
        self.nodes.append(OnnxNode(op_type, list(inputs), list(names), clean, domain, owner, float32))
        self.domains.add(domain)
        return names

    def custom(self, layer: Layer, *inputs: str, reason: str) -> list[str]:
        """A node of CUSTOM_DOMAIN: a layer's type, its bottoms, then its blobs, and its parameters as attributes.

        Args:
            layer: The layer.
            inputs: Values of its bottoms.
            reason: Why standard ONNX cannot say it.

        Returns:
            The value name of each top.

        Raises:
            UnsupportedLayerError: Such nodes are not allowed.
        """
        if not self.allow_custom:
            raise UnsupportedLayerError(
                f"{reason}, which standard ONNX cannot say (--allow-custom makes it a node of {CUSTOM_DOMAIN})",
                subject=layer.label,
            )
        self.notes.append(f"{layer.label}: {reason}; it is a node of {CUSTOM_DOMAIN}, which a runtime must be taught")
        blobs = [self.blob(layer, role) for role in layer.blobs]
        given = {name: value for name, value in layer.attributes().items() if value not in ((), "")}
        return self.op(layer.type, *inputs, *blobs, outputs=len(layer.tops), domain=CUSTOM_DOMAIN, **given)

    def shape(self, value: str) -> Dims:
        """The shape of a bottom of the current layer; reading an open extent fixes it."""
        return self.shapes[value]

    def blob(self, layer: Layer, role: str, shape: Sequence[int] | None = None) -> str:
        """A blob of a layer as an initializer, shared where the parameter is.

        Args:
            layer: The layer.
            role: The blob's role.
            shape: Another shape of the same count, where the operator wants one.
        """
        blob = layer.blobs.blob(role)
        wanted = blob.shape if shape is None else tuple(shape)
        key = (id(blob.origin), wanted)
        name = self._blobs.get(key)
        if name is None:
            name = self._blobs[key] = self.unique(f"{layer.name}.{role}")
            self.initializers[name] = OnnxInitializer(wanted, blob)
        self.initializers[name].roles.append((self._index, role))
        return name

    def merge(self, role: str, neutral: float) -> None:
        """Note that a blob of the layer was merged into others; a reader of the file gets ``neutral`` for it."""
        self.merged.append((self._index, role, neutral))

    def const(self, array: Any, name: str = "", role: str = "") -> str:
        """An initializer with these values; equal ones are shared.

        Args:
            array: float32, int64 or bool.
            name: Its name; by default made from the layer's.
            role: The blob of the current layer that has these values where the file is read back, if one has.
        """
        values = np.asarray(array)
        key = (values.dtype.str, values.shape, values.tobytes()) if values.nbytes <= 1024 and not name else None
        if key in self._constants:
            return self._constants[key]
        owner = self._layer.name if self._layer else ""
        chosen = self.unique(name or f"{owner}/constant")
        self.initializers[chosen] = OnnxInitializer(
            values.shape, Blob.of(values), [(self._index, role)] if role else []
        )
        if key is not None:
            self._constants[key] = chosen
        return chosen

    def ints(self, values: Sequence[int]) -> str:
        """A 1-D int64 constant, as shapes and axes are."""
        return self.const(np.array(values, np.int64))

    def reduce(self, kind: str, x: str, axes: Sequence[int], keepdims: bool = True) -> str:
        """``ReduceMean``, ``ReduceSum``, ...: the axes are an input or an attribute by opset."""
        op_type = f"Reduce{kind}"
        if self.opset >= 18 or kind == "Sum":
            return self.op(op_type, x, self.ints(axes), keepdims=int(keepdims))[0]
        return self.op(op_type, x, axes=list(axes), keepdims=int(keepdims))[0]

    def reshape(self, x: str, extents: Sequence[int], rest: int | None = None) -> str:
        """``Reshape`` that leaves open what is open.

        Args:
            x: A bottom of the current layer.
            extents: The new extents, as ONNX has them: 0 keeps the axis at that place, -1 is what is left.
            rest: Behind ``extents`` come the axes of ``x`` from this one on; by default none.
        """
        shape = self.shape(x)
        stop = len(shape) if rest is None else rest
        kept = range(stop, len(shape))
        moved = stop != len(extents)
        tail = [(shape[axis] if shape.fixed(axis) else -1) if moved else 0 for axis in kept]
        if [*extents, *tail] == [0] * len(shape):
            return x
        if [*extents, *tail].count(-1) <= 1:
            return str(self.Reshape(x, self.ints([*extents, *tail])))
        return str(self.Reshape(x, self.Concat(self.ints(extents), self.extents(x, stop, len(shape)), axis=0)))

    def extents(self, x: str, start: int, stop: int) -> str:
        """The extents of a bottom's axes ``start`` to ``stop`` as a 1-D int64 value, read when it runs."""
        return str(self.Slice(self.Shape(x), self.ints([start]), self.ints([stop])))
