"""EuclideanLoss: the loss of a regression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import layer_type
from bridge.layers.loss import Loss

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays


@layer_type("EuclideanLoss")
class EuclideanLoss(Loss):
    """``sum (a - b)^2 / 2N``.

    Source: euclidean_loss_layer.cpp.
    """

    predictions = 2

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        self.check_bottoms(*(value.shape for value in x))
        truth = F.reshape(x[1], x[0].shape)
        return F.sum(F.square(F.cast(x[0], truth.dtype) - truth)) / (2 * x[0].shape[0])  # predictions may be float16
