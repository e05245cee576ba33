"""InnerProduct: the fully connected layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

    Source: caffe.proto ``InnerProductParameter``, inner_product_layer.cpp; ONNX ``Gemm``, ``MatMul``.
    """

    float16_safe = True
    flat_weight = True
    rounds_near_one = False
    message = "inner_product_param"
    ignored = frozenset({"weight_filler", "bias_filler", "engine"})
    ranks = {"weight": 2, "bias": 1}
    bottom_count = (1, 1)
    top_count = (1, 1)

    num_output: int
    bias_term: bool = True
    axis: int = 1
    transpose: bool = False

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if values["num_output"] < 1:
            raise p.fail(f"parameter 'num_output' is {values['num_output']}, expected at least 1")
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
        blobs = [g.blob(self, role) for role in self.blobs]
        if axis < 2:
            flat = x[0] if (axis, len(shape)) == (1, 2) else g.Flatten(x[0], axis=axis)
            y = g.Gemm(flat, *blobs, transB=int(not self.transpose))
            return str(y if axis else g.Reshape(y, g.ints([-1])))
        # keep the leading axes apart, as the top has them
        flat = x[0] if axis == len(shape) - 1 else g.Reshape(x[0], g.ints([0] * axis + [-1]))
        weight = blobs[0] if self.transpose else g.Transpose(blobs[0], perm=[1, 0])
        y = g.MatMul(flat, weight)
        return g.Add(y, blobs[1]) if self.bias_term else y

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        axis = canonical_axis(self.axis, x[0].ndim, self)
        weight = F.transpose(link.W) if self.transpose else link.W
        return (
            F.linear(x[0], weight, link.b if self.bias_term else None, n_batch_axes=axis)
            if axis
            else (F.reshape(F.linear(F.reshape(x[0], (1, -1)), weight, link.b if self.bias_term else None), (-1,)))
        )
