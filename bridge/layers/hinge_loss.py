"""HingeLoss: the loss of a maximum margin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from bridge.layers.base import layer_type
from bridge.layers.loss import Loss
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays


@layer_type("HingeLoss")
class HingeLoss(Loss):
    """``sum max(0, 1 - s x)^p / N`` over all classes, where s is 1 for the sample's class and -1 for others.

    Attributes:
        norm: L1 for p = 1, L2 for p = 2.

    Source: caffe.proto ``HingeLossParameter``, hinge_loss_layer.cpp.
    """

    classifies = True
    message = "hinge_loss_param"
    enum_start = 1

    norm: Literal["L1", "L2"] = "L1"

    def check_bottoms(self, *bottoms: Shape) -> None:
        self.check_labels(bottoms[0], bottoms[1], bottoms[0][0])

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.caffe_hinge_loss(x[0], x[1], self)
