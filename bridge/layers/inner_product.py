"""InnerProduct: the fully connected layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import CaffeLayer, Params, canonical_axis, layer_type
from bridge.schema import Shape, count

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("InnerProduct")
class InnerProduct(CaffeLayer):
    """``y = x W^T + b`` over the axes from ``axis`` on, taken as one.

    Blobs: ``weight`` (num_output, K), or (K, num_output) with ``transpose``; ``bias``
    (num_output). K is the product of the extents from ``axis`` on.

    Attributes:
        num_output: Outputs.
        bias_term: Whether there is a bias.
        axis: First of the axes that are multiplied over.
        transpose: Whether the weight is stored transposed.
        normalize: Whether each row of the weight is divided by its length, the root of its squares' sum + 1e-6.

    Source: caffe.proto ``InnerProductParameter``, inner_product_layer.cpp; ``normalize``:
    inner_product_layer.cpp of caffe-windows and OpenVINO's toolbox; ONNX ``Gemm``, ``MatMul``.
    """

    float16_safe = True
    flat_weight = True
    rounds_near_one = False
    message = "inner_product_param"
    ranks = {"weight": 2, "bias": 1}
    bottom_count = (1, 1)
    top_count = (1, 1)

    num_output: int
    bias_term: bool = True
    axis: int = 1
    transpose: bool = False
    normalize: bool = False

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if values["num_output"] < 1:
            raise p.fail(f"parameter 'num_output' is {values['num_output']}", expected="at least 1")
        if values["normalize"] and values["transpose"]:
            raise p.fail("normalize of a transposed weight scales parts of rows, which is not computed here")
        return values

    def roles(self, stored: int) -> tuple[str, ...]:
        return ("weight", "bias") if self.bias_term else ("weight",)

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        inner = count(bottoms[0][canonical_axis(self.axis, len(bottoms[0]), self) :])
        weight = (inner, self.num_output) if self.transpose else (self.num_output, inner)
        return {"weight": weight, **({"bias": (self.num_output,)} if self.bias_term else {})}

    def sum_terms(self, *bottoms: Shape) -> int | None:
        return self.blobs.blob("weight").size // self.num_output + 1

    @property
    def outputs(self) -> int | None:
        return self.num_output

    @property
    def weight_transposed(self) -> bool:
        return self.transpose

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        axis = canonical_axis(self.axis, len(bottoms[0]), self)
        return ((*bottoms[0][:axis], self.num_output),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        shape = g.shape(x[0])
        axis = canonical_axis(self.axis, len(shape), self)
        blobs = self.onnx_blobs(g)
        if axis < 2:
            flat = x[0] if (axis, len(shape)) == (1, 2) else g.Flatten(x[0], axis=axis)
            y = self.onnx_output(g, g.Gemm(self.onnx_input(g, flat), *blobs, transB=int(not self.transpose)))
            return str(y if axis else g.Reshape(y, g.ints([-1])))
        # keep the leading axes apart, as the top has them
        flat = x[0] if axis == len(shape) - 1 else g.Reshape(x[0], g.ints([0] * axis + [-1]))
        weight = blobs[0] if self.transpose else g.Transpose(blobs[0], perm=[1, 0])
        y = g.MatMul(self.onnx_input(g, flat), weight)
        return self.onnx_output(g, str(g.Add(y, blobs[1]) if self.bias_term else y))

    def onnx_input(self, g: OnnxBuilder, x: str) -> str:
        """What is done to the bottom first; nothing, but in twins of this type."""
        return x

    def onnx_output(self, g: OnnxBuilder, y: str) -> str:
        """What is done to the top last."""
        return y

    def onnx_blobs(self, g: OnnxBuilder) -> list[str]:
        """The weight, and the bias if there is one."""
        blobs = [g.blob(self, role) for role in ("weight", "bias")[: 1 + self.bias_term]]
        if self.normalize:
            squares = g.reduce("Sum", g.Mul(blobs[0], blobs[0]), [1])
            blobs[0] = g.Div(blobs[0], g.Sqrt(g.Add(squares, g.const(np.float32(1e-6)))))
        return blobs

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        axis = canonical_axis(self.axis, x[0].ndim, self)
        weight, bias = self.chainer_blobs(F, link)
        weight = F.transpose(weight) if self.transpose else weight
        if axis:
            return F.linear(x[0], weight, bias, n_batch_axes=axis)
        return F.reshape(F.linear(F.reshape(x[0], (1, -1)), weight, bias), (-1,))

    def chainer_blobs(self, F: ChainerFunctions, link: LayerArrays) -> tuple[Any, Any]:
        """The weight, and the bias if there is one."""
        weight, bias = link.W, link.b if self.bias_term else None
        if self.normalize:
            weight = weight / F.broadcast_to(F.sqrt(F.sum(weight * weight, 1, keepdims=True) + 1e-6), weight.shape)
        return weight, bias
