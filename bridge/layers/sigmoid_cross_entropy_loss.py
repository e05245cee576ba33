"""SigmoidCrossEntropyLoss: the loss of many yes-or-no questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import layer_type
from bridge.layers.loss import Normalization, NormalizedLoss

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays


@layer_type("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(NormalizedLoss):
    """``-t log sigmoid(x) - (1 - t) log(1 - sigmoid(x))``, summed, by default over the samples' number.

    Source: caffe.proto ``LossParameter``, sigmoid_cross_entropy_loss_layer.cpp.
    """

    answers = True
    inference_type = "Sigmoid"

    normalization: Normalization = "BATCH_SIZE"

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        self.check_bottoms(*(value.shape for value in x))
        return F.caffe_sigmoid_cross_entropy_loss(x[0], x[1], self)
