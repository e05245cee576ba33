"""ContrastiveLoss: the loss of pairs that are alike or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import layer_type
from bridge.layers.loss import Loss
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays


@layer_type("ContrastiveLoss")
class ContrastiveLoss(Loss):
    """``sum (y d^2 + (1 - y) max(margin - d, 0)^2) / 2N`` with the distance d of each pair.

    Bottoms: the pair, (N, C) each, and y, 1 where the two are alike.

    Attributes:
        margin: Pairs that are not alike count up to this distance.
        legacy_version: ``max(margin - d^2, 0)`` for pairs that are not alike.

    Source: caffe.proto ``ContrastiveLossParameter``, contrastive_loss_layer.cpp; Hadsell, Chopra and LeCun,
    Dimensionality Reduction by Learning an Invariant Mapping, 2006.
    """

    message = "contrastive_loss_param"
    bottom_count = (3, 3)
    predictions = 2

    margin: float = 1.0
    legacy_version: bool = False

    def check_bottoms(self, *bottoms: Shape) -> None:
        super().check_bottoms(*bottoms)
        self.check_labels(bottoms[0], bottoms[2], bottoms[0][0])

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        self.check_bottoms(*(value.shape for value in x))
        return F.caffe_contrastive_loss(x[0], x[1], x[2], self)
