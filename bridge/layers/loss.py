"""What losses share: where they stand in a net, and what they divide by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bridge.layers.base import CaffeLayer, Params
from bridge.schema import Shape, count, times
from bridge.schema.message import Message

Normalization = Literal["FULL", "VALID", "BATCH_SIZE", "NONE"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Loss(CaffeLayer):
    """A layer that says how wrong the net is, in one number. It has no part in inference.

    The first top is the loss itself; its ``loss_weight`` comes in where a net's losses are added up.

    Source: loss_layer.cpp.
    """

    training_only = True
    is_loss = True
    default_loss_weight = 1.0
    bottom_count = (2, 2)
    top_count = (0, 1)  # Caffe makes the top where none is named
    fork_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of ``loss_param`` that only a fork has and that the layer computes with."""

    def reason(self) -> str:
        return "a loss has no part in inference"

    def inference_layer(self, name: str, bottom: str, top: str) -> Message:
        definition = super().inference_layer(name, bottom, top)
        axis = self.attributes().get("axis", 1)
        if axis != 1:
            definition.set("softmax_param", Message(axis=axis))
        return definition

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        self.check_bottoms(*bottoms)
        return ((),)

    def check_bottoms(self, *bottoms: Shape) -> None:
        """Compare the bottoms' shapes.

        Raises:
            ModelError: They do not go together.
        """
        a, b = bottoms[:2]
        if count(a) != count(b) or a[:1] != b[:1]:
            raise self.fail(f"bottom 1 is {times(b)}", expected=f"{times(a)} as bottom 0")

    def check_labels(self, prediction: Shape, labels: Shape, expected: int) -> None:
        """One label per place that is predicted.

        Raises:
            ModelError: There are more or fewer.
        """
        if count(labels) != expected or labels[:1] != prediction[:1]:
            raise self.fail(f"{count(labels)} labels ({times(labels)}) for {times(prediction)}", expected=f"{expected}")


@dataclass(frozen=True, eq=False, kw_only=True)
class NormalizedLoss(Loss):
    """A loss whose sum is divided by a number of places or samples.

    Attributes:
        ignore_label: Places with this label count nothing.
        normalization: FULL divides by all places, VALID by those that are not ignored, BATCH_SIZE by the samples.

    Source: caffe.proto ``LossParameter``, softmax_loss_layer.cpp.
    """

    ignore_label: int | None = None
    normalization: Normalization = "VALID"

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        loss = p.other("loss_param")
        default: str = cls.normalization
        if "normalize" in loss:  # what ``normalization`` replaced
            default = "VALID" if loss.read("normalize", bool, False) else "BATCH_SIZE"
        return {
            **super().read(p),
            "ignore_label": loss.read("ignore_label", int | None, None),
            "normalization": loss.read("normalization", Normalization, default),
        }

    def divisor(self, outer: int, inner: int, valid: int) -> int:
        """What the sum is divided by, for ``outer`` samples of ``inner`` places, ``valid`` of them all counted."""
        numbers = {"FULL": outer * inner, "VALID": valid, "BATCH_SIZE": outer, "NONE": 1}
        return max(1, numbers[self.normalization])
