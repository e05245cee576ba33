"""SigmoidCrossEntropyLoss: the loss of many yes-or-no questions."""

from __future__ import annotations

from typing import Any

from bridge.layers.base import layer_type
from bridge.layers.loss import Normalization, NormalizedLoss


@layer_type("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(NormalizedLoss):
    """``-t log sigmoid(x) - (1 - t) log(1 - sigmoid(x))``, summed, by default over the samples' number.

    Source: caffe.proto ``LossParameter``, sigmoid_cross_entropy_loss_layer.cpp.
    """

    inference_type = "Sigmoid"

    normalization: Normalization = "BATCH_SIZE"

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        self.check_bottoms(*(value.shape for value in x))
        return F.sigmoid_cross_entropy_loss(x[0], x[1], self)
