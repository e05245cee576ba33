"""Dropout: the identity at test time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import ElementwiseLayer, Params, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Dropout")
class Dropout(ElementwiseLayer):
    """In training, zeroes values with ``dropout_ratio`` and scales the rest up; then nothing.

    Source: caffe.proto ``DropoutParameter``, dropout_layer.cpp.
    """

    rounds_near_one = False
    message = "dropout_param"
    ignored = frozenset({"engine"})

    dropout_ratio: float = 0.5

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if not 0 <= values["dropout_ratio"] < 1:
            raise p.fail(f"parameter 'dropout_ratio' is {values['dropout_ratio']:g}, expected 0 to below 1")
        return values

    copies = True

    @property
    def draws_random(self) -> bool:
        return self.dropout_ratio > 0

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return x[0]

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.dropout(x[0], self.dropout_ratio)
