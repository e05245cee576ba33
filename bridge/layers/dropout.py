"""Dropout: the identity at test time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import ElementwiseLayer, Params, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("Dropout")
class Dropout(ElementwiseLayer):
    """In training, zeroes values with ``dropout_ratio`` and scales the rest up; then nothing.

    Without ``scale_train`` the rest is not scaled up, and at test time every value is multiplied by
    ``1 - dropout_ratio``.

    Attributes:
        dropout_ratio: The part of the values that is dropped.
        scale_train: Scale in training, not at test time.

    Source: caffe.proto ``DropoutParameter``, dropout_layer.cpp; ``scale_train``: dropout_layer.cpp of caffe-fast-rcnn.
    """

    rounds_near_one = False
    message = "dropout_param"

    dropout_ratio: float = 0.5
    scale_train: bool = True

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if not 0 <= values["dropout_ratio"] < 1:
            raise p.fail(f"parameter 'dropout_ratio' is {values['dropout_ratio']:g}", expected="0 to below 1")
        if p.read("sample_weights_test", bool, False):
            raise p.fail("sample_weights_test draws random numbers at test time too (Bayesian SegNet)")
        return values

    @property
    def copies(self) -> bool:
        return self.scale_train

    @property
    def draws_random(self) -> bool:
        return self.dropout_ratio > 0

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return x[0] if self.scale_train else str(g.Mul(x[0], g.const(self._kept)))

    @property
    def _kept(self) -> np.float32:
        return np.float32(1) / np.float32(1 / (1 - np.float32(self.dropout_ratio)))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        y = F.dropout(x[0], self.dropout_ratio)
        return y if self.scale_train else y * self._kept
