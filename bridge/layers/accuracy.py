"""Accuracy: the part of the samples that are classified right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import CaffeLayer, canonical_axis, layer_type
from bridge.schema import Shape, count, times

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays


@layer_type("Accuracy")
class Accuracy(CaffeLayer):
    """The part of all places whose label is among the ``top_k`` largest; a second top has it per class.

    A label is among them if fewer than ``top_k`` other classes have a value as large as its own.

    Attributes:
        top_k: How many of the largest count as right.
        axis: The axis of the classes.
        ignore_label: Places with this label count nothing.

    Source: caffe.proto ``AccuracyParameter``, accuracy_layer.cpp.
    """

    float16_safe = True
    rounds_near_one = False
    message = "accuracy_param"
    training_only = True
    bottom_count = (2, 2)
    top_count = (1, 2)

    top_k: int = 1
    axis: int = 1
    ignore_label: int | None = None

    def reason(self) -> str:
        return "an accuracy has no part in inference"

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        prediction, labels = bottoms
        axis = canonical_axis(self.axis, len(prediction), self)
        expected = count(prediction[:axis]) * count(prediction[axis + 1 :])
        if count(labels) != expected:
            raise self.fail(f"{count(labels)} labels ({times(labels)}) for {times(prediction)}", expected=f"{expected}")
        if self.top_k > prediction[axis]:
            raise self.fail(f"top_k is {self.top_k}, and there are {prediction[axis]} classes")
        return ((), (prediction[axis],))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        self.infer(*(value.shape for value in x))
        return F.caffe_accuracy(x[0], x[1], self)
