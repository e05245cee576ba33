"""MultinomialLogisticLoss: the loss of a classification, from probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import layer_type
from bridge.layers.loss import Loss
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays


@layer_type("MultinomialLogisticLoss")
class MultinomialLogisticLoss(Loss):
    """The mean of ``-log p[label]``, p at least 1e-20.

    Source: multinomial_logistic_loss_layer.cpp.
    """

    classifies = True

    def check_bottoms(self, *bottoms: Shape) -> None:
        self.check_labels(bottoms[0], bottoms[1], bottoms[0][0])

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.caffe_multinomial_logistic_loss(x[0], x[1], self)
