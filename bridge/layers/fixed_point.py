"""Twins of Convolution and InnerProduct that round as fixed-point arithmetic does: Ristretto's and FQ's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bridge.layers.base import CaffeLayer, Params, layer_type
from bridge.layers.boxes import round_half_away
from bridge.layers.convolution import Convolution
from bridge.layers.inner_product import InnerProduct
from bridge.schema import Layer, Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder

_Precision = Literal["DYNAMIC_FIXED_POINT", "MINIFLOAT", "INTEGER_POWER_OF_2_WEIGHTS"]
_Format = tuple[int, int]
"""Bits of a number in all, and behind the point."""
_FINE: _Format = (62, 30)
_MANY = 2**22
_OTHER = dict.fromkeys(
    ("mant_bits", "exp_bits", "exp_min", "exp_max"), "is for another precision than DYNAMIC_FIXED_POINT"
)


def read_formats(p: Params) -> dict[str, Any]:
    """The formats of inputs, outputs and weights, from ``quantization_param``.

    Raises:
        ModelError: They are rounded in another way, which standard ONNX cannot say.

    Source: caffe.proto ``QuantizationParameter`` of Ristretto.
    """
    q = p.other("quantization_param")
    precision = q.read("precision", _Precision, "DYNAMIC_FIXED_POINT")
    if precision != "DYNAMIC_FIXED_POINT":
        raise p.fail(f"quantization_param: precision is {precision}", expected="DYNAMIC_FIXED_POINT")
    if q.read("rounding_scheme", Literal["NEAREST", "STOCHASTIC"], "NEAREST") != "NEAREST":
        raise p.fail("quantization_param: rounding_scheme is STOCHASTIC: it draws random numbers")
    parts = {"input_format": "layer_in", "output_format": "layer_out", "weight_format": "params"}
    return {name: (q.read(f"bw_{part}", int, 32), q.read(f"fl_{part}", int, 16)) for name, part in parts.items()}


def rounded(x: np.ndarray, form: _Format) -> np.ndarray:
    """Values cut to what a format can hold, and rounded to it, halves away from zero; float32."""
    low, high, step = _range(form)
    x = np.clip(x.astype(np.float32), low, high) / step
    return np.asarray(np.sign(x) * np.floor(np.abs(x) + np.float32(0.5)) * step, np.float32)


def _range(form: _Format) -> tuple[np.float32, np.float32, np.float32]:
    step = 2.0 ** -form[1]
    half = 2.0 ** (form[0] - 1)
    return np.float32(-half * step), np.float32((half - 1) * step), np.float32(step)


def _rounded_onnx(g: OnnxBuilder, x: str, form: _Format) -> str:
    low, high, step = map(g.const, _range(form))
    return str(g.Mul(round_half_away(g, g.Div(g.Clip(x, low, high), step)), step))


def _rounded_chainer(F: ChainerFunctions, x: Any, form: _Format) -> Any:
    """The rounding passes gradients through, as Ristretto does."""
    xp, (low, high, step) = x.xp, _range(form)
    y = xp.clip(x.array, low, high) / step
    return x + (xp.sign(y) * xp.floor(xp.abs(y) + xp.float32(0.5)) * step - x.array)


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class _Ristretto(CaffeLayer):
    """What Ristretto's twins share: input, weights, bias and output are rounded to fixed-point numbers.

    It stands before the class that computes, as in ``class X(_Ristretto, Convolution)``; ``super()`` is that class.
    """

    more_messages = ("quantization_param",)
    harmless = _OTHER
    float16_safe = False  # a value that falls to another side of a half is off by a whole step

    input_format: _Format = (32, 16)
    output_format: _Format = (32, 16)
    weight_format: _Format = (32, 16)

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        return {**super().read(p), **read_formats(p)}

    def magnitudes(self) -> Layer:
        wide = [(bits + 1, fraction) for bits, fraction in (self.input_format, self.weight_format)]
        made: Any = super().magnitudes()
        layer: Layer = dataclasses.replace(made, input_format=wide[0], weight_format=wide[1], output_format=_FINE)
        return layer

    def onnx_blobs(self, g: OnnxBuilder, *shape: Shape | None) -> list[str]:
        computing: Any = super()
        return [_rounded_onnx(g, blob, self.weight_format) for blob in computing.onnx_blobs(g, *shape)]

    def onnx_input(self, g: OnnxBuilder, x: str) -> str:
        return _rounded_onnx(g, x, self.input_format)

    def onnx_output(self, g: OnnxBuilder, y: str) -> str:
        return _rounded_onnx(g, y, self.output_format)

    def chainer_blobs(self, F: ChainerFunctions, link: LayerArrays) -> tuple[Any, Any]:
        computing: Any = super()
        weight, bias = computing.chainer_blobs(F, link)
        form = self.weight_format
        return _rounded_chainer(F, weight, form), None if bias is None else _rounded_chainer(F, bias, form)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        tops = super().to_chainer(F, link, *(_rounded_chainer(F, value, self.input_format) for value in x))
        if not isinstance(tops, tuple):
            return _rounded_chainer(F, tops, self.output_format)
        return tuple(_rounded_chainer(F, top, self.output_format) for top in tops)


@layer_type("ConvolutionRistretto")
class RistrettoConvolution(_Ristretto, Convolution):
    """A Convolution whose input, weights, bias and output are rounded to fixed-point numbers.

    Ristretto rounds the bottom in its place, for other layers that read it too; here only this layer's input is.

    Attributes:
        input_format, output_format, weight_format: Bits in all, and behind the point.

    Source: conv_ristretto_layer.cpp, base_ristretto_layer.cpp of pmgysel/caffe.
    """


@layer_type("FcRistretto")
class RistrettoInnerProduct(_Ristretto, InnerProduct):
    """An InnerProduct whose input, weights, bias and output are rounded to fixed-point numbers.

    Attributes:
        input_format, output_format, weight_format: Bits in all, and behind the point.

    Source: fc_ristretto_layer.cpp, base_ristretto_layer.cpp of pmgysel/caffe.
    """


def _levels(weight: np.ndarray, levels: np.ndarray) -> tuple[float, int, int]:
    """The step, the lowest and the highest level of a weight: FQ's four numbers say it, or it is worked out."""
    number, step, low, high = int(levels[0]), float(levels[1]), int(levels[2]), int(levels[3])
    if step != 0 and low != high:
        return step, low, high
    least, most = float(weight.min()), float(weight.max())
    if least > -float(np.finfo(np.float32).eps):
        low, high, step = 0, number - 1, most / (number - 1)
    else:
        high, low = (number - 1) // 2, -(number // 2)
        step = max(least / low, most / high)
    return float(2.0 ** np.ceil(np.log2(step))), low, high


def _quantized_levels(weight: Any, levels: Any, xp: Any = np) -> Any:
    """A weight rounded to whole multiples of a step.

    Args:
        weight: float32.
        levels: (4): how many levels, the step, the lowest and the highest level; a step of 0 is worked out.
        xp: NumPy or CuPy, whichever they are of.
    """
    step, low, high = _levels(weight, levels)
    y = weight / np.float32(step)
    y = xp.sign(y) * xp.floor(abs(y) + np.float32(0.5))
    return (xp.clip(y, low, high) * np.float32(step)).astype(np.float32)


def _magnitudes(layer: Layer) -> Layer:
    """The layer with the magnitudes of its rounded weight, which rounding then leaves as they are."""
    weight, levels = layer.blobs["weight"], layer.blobs["levels"]
    step = _levels(weight, levels)[0]
    wide = np.array([2, step, -_MANY, _MANY], np.float32)
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "weight": lambda w: np.abs(_quantized_levels(w, levels)),
        "bias": np.abs,
        "levels": lambda _: wide,
    }
    return layer.with_changed(changes)


class _Levelled(CaffeLayer):
    """What FQ's twins share: the blob ``levels``, and a weight that is rounded to whole multiples of a step."""

    statistics = frozenset({"levels"})

    def magnitudes(self) -> Layer:
        return _magnitudes(self)

    def roles(self, stored: int) -> tuple[str, ...]:
        return (*super().roles(stored), "levels")

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        return {**super().blob_shapes(*bottoms), "levels": (4,)}

    def onnx_blobs(self, g: OnnxBuilder, shape: Shape | None = None) -> list[str]:
        weight = _quantized_levels(self.blobs["weight"], self.blobs["levels"])
        blobs = [str(g.const(weight if shape is None else weight.reshape(shape), f"{self.name}.weight", "weight"))]
        return [*blobs, g.blob(self, "bias")] if "bias" in self.blobs else blobs

    def chainer_blobs(self, F: ChainerFunctions, link: LayerArrays) -> tuple[Any, Any]:
        computing: Any = super()
        weight, bias = computing.chainer_blobs(F, link)
        return weight + (_quantized_levels(weight.array, link.levels, link.xp) - weight.array), bias


@layer_type("FQConvolution")
class FQConvolution(_Levelled, Convolution):
    """A Convolution whose weight is rounded to whole multiples of a power of two.

    Blobs: ``weight``, ``bias`` if there is one, and ``levels`` (4): their number, the step, the lowest, the highest.

    Source: fq_conv_layer.cu, quant_functions.cu of EunhyeokPark/caffe-FQ.
    """


@layer_type("FQInnerProduct")
class FQInnerProduct(_Levelled, InnerProduct):
    """An InnerProduct whose weight is rounded to whole multiples of a power of two.

    Blobs: ``weight``, ``bias`` if there is one, and ``levels`` (4): their number, the step, the lowest, the highest.

    Source: fq_inner_product_layer.cu, quant_functions.cu of EunhyeokPark/caffe-FQ.
    """
