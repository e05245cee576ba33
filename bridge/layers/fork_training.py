"""Training layers of forks: known by name, so that a net converts without them."""

from __future__ import annotations

from bridge.layers.base import MANY, layer_type
from bridge.layers.loss import Loss
from bridge.schema import Shape


@layer_type(
    "SmoothL1Loss", "SmoothL1LossOHEM", "SoftmaxWithLossOHEM", "L1Loss", "LpqLoss", "RegionLoss",
    "CenterLoss", "TripletLoss", "FocalLoss", "CtcLoss", "WeightedSigmoidCrossEntropyLoss",
)  # fmt: skip
class ForkLoss(Loss):
    """A loss of a fork. It is dropped from a net for inference; it cannot be trained with here.

    Source: the layers of these names in Faster R-CNN, R-FCN, FlowNet, YOLO for Caffe, OpenPose and others.
    """

    bottom_count = (1, MANY)
    top_count = (0, MANY)

    def roles(self, stored: int) -> tuple[str, ...]:
        return tuple(f"blob{index}" for index in range(stored))

    def check_bottoms(self, *bottoms: Shape) -> None:
        """Do nothing: each fork has its own rules."""


@layer_type("DetectionEvaluate", "SegAccuracy", "LabelsequenceAccuracy")
class ForkEvaluation(ForkLoss):
    """What a fork measures a net by, beside its loss.

    Source: the layers of these names in SSD, PSPNet and forks with CTC.
    """

    default_loss_weight = 0.0


@layer_type("MultiBoxLoss")
class MultiBoxLoss(ForkLoss):
    """SSD's loss: of places, of classes, and the priors that both are relative to; then the right boxes.

    Source: multibox_loss_layer.cpp of SSD.
    """

    predictions = 3
