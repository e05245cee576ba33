"""Embed: rows of a table by number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import CaffeLayer, Params, layer_type
from bridge.schema import Shape
from bridge.schema.hooks import Fill

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Embed")
class Embed(CaffeLayer):
    """The row of the weight that each value of the bottom names, plus the bias, along a new last axis.

    Blobs: ``weight`` (input_dim, num_output), ``bias`` (num_output).

    Attributes:
        num_output: Extent of a row.
        input_dim: Number of rows.
        bias_term: Whether there is a bias.

    Source: caffe.proto ``EmbedParameter``, embed_layer.cpp; ONNX ``Gather``.
    """

    float16_safe = True
    rounds_near_one = False
    message = "embed_param"
    ranks = {"weight": 2, "bias": 1}
    bottom_count = (1, 1)
    top_count = (1, 1)

    num_output: int
    input_dim: int
    bias_term: bool = True

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        for name in ("num_output", "input_dim"):
            if values[name] < 1:
                raise p.fail(f"parameter '{name}' is {values[name]}", expected="at least 1")
        return values

    def roles(self, stored: int) -> tuple[str, ...]:
        return ("weight", "bias") if self.bias_term else ("weight",)

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {"weight": (self.input_dim, self.num_output), "bias": (self.num_output,)}
        return {role: shapes[role] for role in self.roles(0)}

    def sum_terms(self, *bottoms: Shape) -> int | None:
        return 2  # a row and the bias

    @property
    def outputs(self) -> int | None:
        return self.num_output

    def fill(self, bottom: int) -> Fill | None:
        return lambda rng, shape, _: rng.integers(0, self.input_dim, shape)

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return ((*bottoms[0], self.num_output),)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        rows = g.Gather(g.blob(self, "weight"), g.Cast(x[0], to=g.INT64), axis=0)
        return g.Add(rows, g.blob(self, "bias")) if self.bias_term else rows

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        rows = F.embed_id(x[0].array.astype("i"), link.W)
        return rows + F.broadcast_to(link.b, rows.shape) if self.bias_term else rows
