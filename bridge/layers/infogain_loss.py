"""InfogainLoss: a classification's loss where some mistakes weigh more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.errors import UnsupportedLayerError
from bridge.layers.base import canonical_axis, layer_type
from bridge.layers.loss import NormalizedLoss
from bridge.schema import Shape, count, times

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays


@layer_type("InfogainLoss")
class InfogainLoss(NormalizedLoss):
    """The mean of ``-sum_k H[label, k] log softmax(x)[k]``, the softmax at least 1e-20.

    Bottoms: x, labels, and H (classes x classes), unless H is to come from the file ``source``.
    A second top has the softmax itself.

    Attributes:
        source: A binaryproto with H; only a third bottom can be run here.
        axis: The axis of the classes.

    Source: caffe.proto ``InfogainLossParameter``, infogain_loss_layer.cpp.
    """

    classifies = True
    message = "infogain_loss_param"
    bottom_count = (2, 3)
    top_count = (0, 2)
    inference_type = "Softmax"

    source: str = ""
    axis: int = 1

    def check_bottoms(self, *bottoms: Shape) -> None:
        axis = canonical_axis(self.axis, len(bottoms[0]), self)
        self.check_labels(bottoms[0], bottoms[1], count(bottoms[0][:axis]) * count(bottoms[0][axis + 1 :]))
        classes = bottoms[0][axis]
        if len(bottoms) > 2 and count(bottoms[2]) != classes * classes:
            raise self.fail(f"bottom 2 is {times(bottoms[2])}", expected=f"{classes} x {classes}")

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return (*super().infer(*bottoms), bottoms[0])

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        if len(x) < 3:
            raise UnsupportedLayerError(
                f"the matrix in '{self.source}' is not read", subject=self.label, hint="feed it as a third bottom"
            )
        loss = F.caffe_infogain_loss(x[0], x[1], x[2], self)
        return (loss, F.softmax(x[0], axis=self.axis)) if len(self.tops) > 1 else loss
