"""SoftmaxWithLoss: the loss of a classification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import Params, canonical_axis, layer_type
from bridge.layers.loss import NormalizedLoss
from bridge.schema import Shape, count

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays


@layer_type("SoftmaxWithLoss")
class SoftmaxWithLoss(NormalizedLoss):
    """The mean of ``-log softmax(x)[label]``; a second top has the softmax itself.

    Attributes:
        axis: The axis of the classes.
        class_weights: SegNet's factor on the places of each class; none counts each as one.

    Source: caffe.proto ``SoftmaxParameter``, ``LossParameter``, softmax_loss_layer.cpp; the weights from
    caffe-segnet's.
    """

    classifies = True
    message = "softmax_param"
    top_count = (0, 2)
    inference_type = "Softmax"

    fork_fields = frozenset({"weight_by_label_freqs", "class_weighting"})

    axis: int = 1
    class_weights: tuple[float, ...] = ()

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        loss = p.other("loss_param")
        weights = loss.read("class_weighting", tuple[float, ...], ())
        given = loss.read("weight_by_label_freqs", bool, False)
        if given and not weights:
            raise loss.fail("has weight_by_label_freqs without a class_weighting for each class")
        return {**super().read(p), "class_weights": weights if given else ()}

    def check_bottoms(self, *bottoms: Shape) -> None:
        axis = canonical_axis(self.axis, len(bottoms[0]), self)
        if self.class_weights and len(self.class_weights) != bottoms[0][axis]:
            raise self.fail(
                f"has {len(self.class_weights)} class_weighting, expected {bottoms[0][axis]} for as many classes"
            )
        self.check_labels(bottoms[0], bottoms[1], count(bottoms[0][:axis]) * count(bottoms[0][axis + 1 :]))

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return (*super().infer(*bottoms), bottoms[0])

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        loss = F.caffe_softmax_with_loss(x[0], x[1], self)
        return (loss, F.softmax(x[0], axis=self.axis)) if len(self.tops) > 1 else loss
