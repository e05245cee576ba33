"""Dropout: the identity at test time."""

from __future__ import annotations

from typing import Any

from bridge.layers.base import CaffeLayer, layer_type
from bridge.schema import Shape


@layer_type("Dropout")
class Dropout(CaffeLayer):
    """In training, zeroes values with ``dropout_ratio`` and scales the rest up; then nothing.

    Source: caffe.proto ``DropoutParameter``, dropout_layer.cpp.
    """

    message = "dropout_param"
    ignored = frozenset({"engine"})

    dropout_ratio: float = 0.5

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return (bottoms[0],)

    def to_onnx(self, g: Any, *x: str) -> str:
        return x[0]

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        return F.dropout(x[0], self.dropout_ratio)
