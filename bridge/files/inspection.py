"""What the layers of a net compute, take and cost: parameters, shapes, multiply-adds, memory, values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridge.caffe_files.fields import fields_of
from bridge.errors import BridgeError
from bridge.schema import Blob, Blobs, Net, Opaque, Shape, count
from bridge.schema.net import distinct

_FLOAT32 = 4
"""Bytes of a value in float32, in which Caffe computes."""


def inspect_net(
    net: Net, inputs: Mapping[str, Shape] | None = None, *, layer: str | None = None, values: bool = True
) -> dict[str, Any]:
    """What the layers of a net compute, take and cost, as plain data.

    Args:
        net: The net.
        inputs: Shape of each input blob; those not given have the file's.
        layer: Only the layers of this name; by default all.
        values: Compute statistics of the blobs' values, for which every value is read.

    Returns:
        ``layers``, a list, ``totals`` over the whole net, and ``problem``: why there are no shapes, or an empty text.
        Bytes of tops are those of float32, bytes of blobs as stored. The total counts no top that is written in place.

    Raises:
        NotFoundError: No layer has that name.
    """
    wanted = net[layer].name if layer is not None else None
    try:
        shapes, problem = net.flow.infer(inputs), ""
    except BridgeError as error:
        shapes, problem = [], error.text
    described = [
        _layer(net, index, shapes, values and (wanted is None or each.name == wanted))
        for index, each in enumerate(net.layers)
    ]
    blobs = distinct(net.layers)
    totals = {
        "layers": len(net.layers),
        "values": sum(blob.size for blob in blobs),
        "weight_bytes": sum(blob.nbytes for blob in blobs),
        "top_bytes": sum(map(_own_bytes, described)) if shapes else None,
        "multiply_adds": sum(one["multiply_adds"] or 0 for one in described) if shapes else None,
    }
    kept = [one for one in described if wanted is None or one["name"] == wanted]
    return {"layers": kept, "totals": totals, "problem": problem}


def _layer(net: Net, index: int, shapes: Sequence[tuple[Shape, ...]], values: bool) -> dict[str, Any]:
    layer = net.layers[index]
    tops = shapes[index] if shapes else (None,) * len(layer.tops)
    return {
        "name": layer.name,
        "type": layer.type,
        "bottoms": list(layer.bottoms),
        "tops": [_top(name, shape) for name, shape in zip(layer.tops, tops, strict=False)],
        "parameters": {name: _plain(value) for name, value in layer.attributes().items()},
        "multiply_adds": _multiply_adds(net, index, shapes) if shapes else None,
        "blobs": [_blob(role, blob, values) for role, blob in layer.blobs.entries()],
        "unread": [
            {"field": found.path, "value": _plain(found.value), "reason": found.reason} for found in fields_of(layer)
        ],
        "problem": layer.uncovered or (layer.problem if isinstance(layer, Opaque) else ""),
    }


def _own_bytes(described: Mapping[str, Any]) -> int:
    """The bytes of a layer's tops that are not written in place."""
    return sum(top["bytes"] or 0 for top in described["tops"] if top["name"] not in described["bottoms"])


def _top(name: str, shape: Shape | None) -> dict[str, Any]:
    known = None if shape is None else list(shape)
    return {"name": name, "shape": known, "bytes": None if shape is None else count(shape) * _FLOAT32}


def _multiply_adds(net: Net, index: int, shapes: Sequence[tuple[Shape, ...]]) -> int | None:
    layer, reads = net.layers[index], net.flow.reads[index]
    if isinstance(layer, Opaque) or layer.is_input or any(value.layer < 0 for value in reads):
        return None
    bottoms = [shapes[value.layer][value.top] for value in reads]
    if not layer.blobs:  # a prototxt alone: shapes tell enough
        wanted = layer.blob_shapes(*bottoms)
        layer = layer.changed(blobs=Blobs({role: _empty(shape) for role, shape in wanted.items()}))
    return layer.multiply_adds(*bottoms)


def _empty(shape: Shape) -> Blob:
    return Blob(shape, np.float32, lambda: np.zeros(shape, np.float32))


def _blob(role: str, blob: Blob, values: bool) -> dict[str, Any]:
    described = {
        "role": role, "shape": list(blob.shape), "dtype": str(blob.dtype), "values": blob.size, "bytes": blob.nbytes,
    }  # fmt: skip
    return {**described, **(statistics(blob.numpy()) if values else {})}


def statistics(array: np.ndarray) -> dict[str, Any]:
    """Smallest, largest, mean and standard deviation of the finite values, and how many are 0, NaN or infinite.

    Args:
        array: Of floats. Where none is finite, the first four are ``None``.
    """
    finite = np.isfinite(array)
    whole = bool(finite.all())
    kept = array if whole else array[finite]
    numbers = [float(kept.min()), float(kept.max()), *_moments(kept)] if kept.size else [None] * 4
    return {
        **dict(zip(("min", "max", "mean", "deviation"), numbers, strict=True)),
        "zeros": int(array.size - np.count_nonzero(array)),
        "nan": 0 if whole else int(np.isnan(array).sum()),
        "infinite": 0 if whole else int(np.isinf(array).sum()),
    }


def _moments(array: np.ndarray) -> tuple[float, float]:
    return float(array.mean(dtype=np.float64)), float(array.std(dtype=np.float64))


def _plain(value: Any) -> Any:
    """A parameter as JSON has it."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (bool, int, float)) or value is None else str(value)
