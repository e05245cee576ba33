"""Where the values of one blob lie over another: for cropping a net's output to its input.

A map is (axis, scale, shift): the coordinate x along each spatial axis behind ``axis`` becomes
``scale * x + shift``.

Source: coord_map.py of pycaffe.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.caffe.net_spec import Function, Top
from bridge.caffe.net_spec import layers as L
from bridge.errors import BridgeError, ModelError
from bridge.layers import REGISTRY
from bridge.layers.base import NeuronLayer
from bridge.layers.broadcast import BroadcastLayer
from bridge.layers.convolution import Convolution
from bridge.layers.crop import Crop
from bridge.layers.deconvolution import Deconvolution
from bridge.layers.eltwise import Eltwise
from bridge.layers.im2col import Im2col
from bridge.layers.pooling import Pooling
from bridge.layers.reverse import Reverse
from bridge.layers.split import Split

Map = tuple[Any, Any, Any]
_SIDES = {f"{what}_{side}" for what in ("pad", "kernel", "stride") for side in "hw"}


class UndefinedMapException(BridgeError):  # noqa: N818
    """A layer maps no coordinates to others."""


class AxisMismatchException(BridgeError):  # noqa: N818
    """Two maps that follow each other are along other axes."""


class CropError(ModelError, AssertionError):
    """A blob cannot be cropped to another one."""


def conv_params(fn: Function) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Axis, stride, extent of the dilated kernel and padding of a convolution, a pooling or the like.

    Raises:
        CropError: The layer gives height and width apart.
    """
    params = fn.params.get("convolution_param", fn.params)
    if _SIDES & set(fn.params):
        raise CropError("cropping does not support legacy _h/_w params", hint="give kernel_size=[h, w]")
    kernel, dilation, stride, pad = (
        np.array(params[name] if default is None else params.get(name, default), ndmin=1)
        for name, default in (("kernel_size", None), ("dilation", 1), ("stride", 1), ("pad", 0))
    )
    return params.get("axis", 1), stride, (kernel - 1) * dilation + 1, pad


def crop_params(fn: Function) -> tuple[int, np.ndarray]:
    """Axis and offset of a Crop."""
    params = fn.params.get("crop_param", fn.params)
    return params.get("axis", 2), np.array(params.get("offset", 0), ndmin=1)


def coord_map(fn: Function) -> Map:
    """The map from a layer's bottom to its top; its axis is ``None`` where coordinates stay.

    Raises:
        UndefinedMapException: There is none.
    """
    kind = REGISTRY.get(fn.type_name, type(None))
    if issubclass(kind, Deconvolution):
        axis, stride, kernel, pad = conv_params(fn)
        return axis, stride, (kernel - 1) / 2 - pad
    if issubclass(kind, (Convolution, Pooling, Im2col)):
        axis, stride, kernel, pad = conv_params(fn)
        return axis, 1 / stride, (pad - (kernel - 1) / 2) / stride
    if issubclass(kind, Crop):
        axis, offset = crop_params(fn)
        return axis - 1, 1, -offset
    if issubclass(kind, (NeuronLayer, BroadcastLayer, Eltwise, Split)) and not issubclass(kind, Reverse):
        return None, 1, 0
    raise UndefinedMapException(f"{fn.type_name} maps no coordinates to others")


def compose(base_map: Map, next_map: Map) -> Map:
    """The map that does one after the other.

    Raises:
        AxisMismatchException: They are along other axes.
    """
    axis, scale, shift = base_map
    next_axis, next_scale, next_shift = next_map
    if axis is not None and next_axis is not None and axis != next_axis:
        raise AxisMismatchException(f"maps along axis {axis} and along axis {next_axis} do not go together")
    return next_axis if axis is None else axis, scale * next_scale, scale * next_shift + shift


def inverse(coord_map: Map) -> Map:
    """The map back."""
    axis, scale, shift = coord_map
    return axis, 1 / scale, -shift / scale


def coord_map_from_to(top_from: Top, top_to: Top) -> Map:
    """The map from one blob to another, by way of a blob that both are computed from.

    Raises:
        RuntimeError: There is no such blob, or no way to it that maps coordinates.
    """
    known: dict[Top, Map] = {top_from: (None, 1, 0)}
    frontier = [top_from]
    while frontier:
        frontier += _step(frontier.pop(), known)
    maps: dict[Top, Map] = {top_to: (None, 1, 0)}
    frontier = [top_to]
    while frontier:
        top = frontier.pop()
        if top in known:
            return compose(maps[top], inverse(known[top]))
        frontier += _step(top, maps)
    raise RuntimeError("Could not compute map between tops; are they connected by spatial layers?")


def _step(top: Top, maps: dict[Top, Map]) -> list[Top]:
    """Adds the maps to the bottoms of a top's layer; returns the bottoms."""
    bottoms = top.fn.inputs
    if issubclass(REGISTRY.get(top.fn.type_name, type(None)), Crop):
        bottoms = bottoms[:1]  # the other one is only measured
    if not bottoms:
        return []
    try:
        step = coord_map(top.fn)
    except UndefinedMapException:
        return []
    maps.update((bottom, compose(maps[top], step)) for bottom in bottoms)
    return [*bottoms]


def crop(top_from: Top, top_to: Top) -> Top:
    """A Crop layer that cuts a blob to the place of another one.

    Raises:
        CropError: They differ in scale, or the place is no whole number, or outside.
    """
    axis, scale, shift = coord_map_from_to(top_from, top_to)
    if not np.all(scale == 1):
        raise CropError(f"scale mismatch on crop (a = {scale})")
    if not np.all(shift <= 0):
        raise CropError(f"cannot crop negative offset (b = {shift})")
    if not np.all(np.round(shift) == shift):
        raise CropError(f"cannot crop noninteger offset (b = {shift})")
    made: Top = L.Crop(
        top_from, top_to, crop_param={"axis": axis + 1, "offset": (-np.round(shift)).astype(int).tolist()}
    )
    return made
