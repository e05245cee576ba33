"""Deconvolution: the transposed convolution.

Its function node is in :mod:`bridge.chain.functions.convolution`, because each is a part of the other's gradient.

Source: deconv_layer.cpp, base_conv_layer.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridge.chain.functions import chainer
from bridge.chain.functions.convolution import Deconvolution

F = chainer.functions


def caffe_deconvolution(
    x: Any, W: Any, b: Any, stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int], groups: int
) -> Any:
    """Grouped, dilated transposed convolution over any number of spatial axes.

    Args:
        x: Variable (N, C, spatial axes...).
        W: Parameter or variable (C, O / groups, kernel...).
        b: Parameter or variable (O), or ``None``.
        stride: Per spatial axis of the result.
        pad: Per spatial axis, taken off the result on both sides.
        dilation: Per spatial axis; 1 for an ordinary convolution.
        groups: Number of groups of channels.

    Returns:
        Variable (N, O, spatial axes...).

    Source: deconv_layer.cpp; ``chainer.functions.deconvolution_nd``.
    """
    options = {"stride": tuple(stride), "pad": tuple(pad), "dilate": tuple(dilation), "groups": groups}
    if x.ndim != 4:
        return F.deconvolution_nd(x, W, b, **options)
    return Deconvolution(**options).apply((x, W) if b is None else (x, W, b))[0]
