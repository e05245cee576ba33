"""What other parts of the package ask of a layer: one member for each question, with a safe answer.

A layer type overrides a member where the default is not true of it. Nothing outside
bridge/layers compares the name of a type: a question that is not here is added here.
docs/plugins.md shows each with an example.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from bridge.schema.blob import Blob, Blobs, Shape, count
from bridge.schema.message import Message

if TYPE_CHECKING:
    from bridge.schema.layer import Layer

_L = TypeVar("_L", bound="LayerHooks")

PartialShape = tuple["int | None", ...]
"""A shape of which some extents are not known."""

Fill = Callable[[np.random.Generator, Shape, Sequence["Shape | None"]], Any]
"""Makes an input: from a generator, the shape wanted, and the shapes of all bottoms as far as they are known."""


@dataclass(frozen=True)
class DetectionRows:
    """How the rows of a top are detections, and how the layer chose them.

    Attributes:
        least: Scores are above this.
        overlap: Boxes that overlap a better one by more than this, as intersection over union, are dropped.
        most: Rows of an image at most; -1 for all.
        across_labels: Boxes of different labels suppress each other, too.
        keys: The columns of the image and the label.
        score: The column of the score.
        box: The first of the four columns of two opposite corners.
    """

    least: float
    overlap: float
    most: int = -1
    across_labels: bool = False
    keys: tuple[int, int] = (0, 1)
    score: int = 2
    box: int = 3

    @property
    def compared(self) -> list[int]:
        """The columns that are numbers: the score and the box."""
        return [self.score, *range(self.box, self.box + 4)]

    def boxes(self, rows: np.ndarray) -> np.ndarray:
        """The corners of rows (..., columns), (..., 4)."""
        return rows[..., self.box : self.box + 4]


class LayerHooks:
    """The questions, in the order of a layer's life: in the net, in training, in numbers, in files."""

    if TYPE_CHECKING:
        blobs: Blobs
        tops: tuple[str, ...]
        bottoms: tuple[str, ...]

    # -- its part in the net ------------------------------------------------------------------

    is_input: ClassVar[bool] = False
    """The layer declares its tops as inputs of the net: Input, and the data layers of training."""

    reads_data: ClassVar[bool] = False
    """The layer reads training data from disk or memory, as Data does; such a layer is an input, too."""

    training_only: ClassVar[bool] = False
    """The layer has no part in inference: losses, accuracies, data layers."""

    @property
    def copies(self) -> bool:
        """At test time every top is the bottom, bit for bit: Split, Dropout."""
        return False

    @property
    def shares_memory(self) -> bool:
        """In Caffe the tops lie in the bottom's memory, under other shapes: Reshape, Flatten, Split.

        A later layer that works in place on such a top changes the bottom as well.
        """
        return False

    def feeds(self, given: Container[str]) -> bool:
        """Whether the tops are fed from outside when the net is deployed: data layers, random numbers.

        Args:
            given: Names of blobs that the user feeds.
        """
        return self.reads_data

    constant_tops: ClassVar[bool] = False
    """The tops are constants, which may stand for data: DummyData."""

    @property
    def extents(self) -> tuple[PartialShape | None, ...]:
        """For a layer that feeds a net, what its parameters tell of each top's extents; else empty."""
        return ()

    def keeping_tops(self, places: Sequence[int]) -> Layer | None:
        """The layer with some of its tops, where that is possible; ``None`` where a top cannot go.

        Args:
            places: Which of the tops stay.
        """
        return None

    def with_input_shapes(self: _L, shapes: Mapping[str, Shape]) -> _L:
        """An input layer with other shapes for some of its tops, by name; any other layer as it is."""
        return self

    @property
    def input_shapes(self) -> tuple[Shape | None, ...]:
        """For an input layer the shape of each top, ``None`` where the file does not give it; else empty."""
        return ()

    data_dependent: ClassVar[tuple[int, ...]] = ()
    """Axes of the tops whose extent depends on values; ``infer`` gives the largest that it can be."""

    def batch_axis(self, bottom: int) -> int:
        """The axis of a bottom that counts samples: an export leaves its extent open."""
        return 0

    # -- in training ----------------------------------------------------------------------------

    is_loss: ClassVar[bool] = False
    """The layer compares what the net computes with what is right: losses and their evaluations."""

    default_loss_weight: ClassVar[float] = 0.0
    """The loss weight of the first top where the definition gives none: 1 for losses."""

    classifies: ClassVar[bool] = False
    """The first bottom holds one score for each class, the second the right class: SoftmaxWithLoss."""

    answers: ClassVar[bool] = False
    """The first bottom holds a score for each of some yes-or-no questions, above 0 for yes, the second the answers as 0
    or 1: SigmoidCrossEntropyLoss."""

    probabilities: ClassVar[bool] = False
    """The top holds probabilities that add up to 1 along an axis: Softmax."""

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """The factor of each top in the loss of the net; 0 for a top that is no loss; empty for unknown types."""
        return ()

    predictions: ClassVar[int] = 1
    """For a layer that serves training only: how many of its bottoms, the first ones, the net computes."""

    inference_type: ClassVar[str] = ""
    """For a loss the layer type that takes its place in inference, such as ``Softmax``; else empty."""

    def inference_layer(self, name: str, bottom: str, top: str) -> Message:
        """The definition of the layer of :attr:`inference_type`."""
        return Message(name=name, type=self.inference_type, bottom=bottom, top=top)

    @property
    def serves_training(self) -> bool:
        """The layer goes when the net is deployed."""
        return self.training_only

    @property
    def draws_random(self) -> bool:
        """In training the result depends on random numbers: Dropout with a ratio above 0."""
        return False

    @property
    def uses_batch(self) -> bool:
        """In training a sample's result depends on the other samples of its batch: BatchNorm."""
        return False

    # -- its blobs ------------------------------------------------------------------------------

    statistics: ClassVar[frozenset[str]] = frozenset()
    """Roles that are running statistics: kept with the link, not trained by the optimizer."""

    chainer_params: ClassVar[dict[str, str]] = {}
    """The name of a role's array in the layer's Chainer link, where that is not the role itself."""

    def roles(self, stored: int) -> tuple[str, ...]:
        """The role of each blob in Caffe's order, for a layer that stores ``stored`` of them; 0 if none yet."""
        return ()

    def array_name(self, role: str) -> str:
        """The attribute of the layer's Chainer link that holds the role's array."""
        return self.chainer_params.get(role, role)

    def attributes(self) -> dict[str, Any]:
        """The type's own parameters by name, such as ``{"num_output": 96, "group": 2}``."""
        return {}

    def filler(self, role: str) -> tuple[str, float]:
        """The field of the parameter message that holds a role's filler, and the value where it has no type."""
        return f"{role}_filler", 0.0

    flat_weight: ClassVar[bool] = False
    """The weight (N, C * H * W) may stand for (N, C, H, W) and the reverse: Convolution, InnerProduct."""

    inputs_first: ClassVar[bool] = False
    """The weight's first axis counts input channels, as in Deconvolution."""

    filters: ClassVar[bool] = False
    """The weight is a bank of image filters, (outputs, channels / group, height, width)."""

    @property
    def weight_transposed(self) -> bool:
        """The file stores the weight with its two axes in the other order."""
        return False

    @property
    def outputs(self) -> int | None:
        """The number of outputs, where that is a parameter of the layer (``num_output``)."""
        return None

    @property
    def input_channels(self) -> int | None:
        """The channels that the input must have, as far as the stored weight tells."""
        return None

    normalises: ClassVar[bool] = False
    """The layer subtracts a stored mean and divides by a stored deviation: BatchNorm."""

    rescales: ClassVar[bool] = False
    """The layer is ``x * gamma + beta``: it may be the affine half of the normalisation before it."""

    @property
    def adjusts(self) -> bool:
        """The layer normalises, scales or shifts the channels of what it reads, and is frozen with the layer before it.

        By default what :attr:`normalises` or :attr:`rescales`.
        """
        return self.normalises or self.rescales

    @property
    def scaled_statistics(self) -> bool:
        """The stored mean and variance are multiplied by the blob ``scale_factor``."""
        return False

    def statistics_values(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean and the variance that the layer computes with, each (C)."""
        return self.blobs["mean"].reshape(-1), self.blobs["variance"].reshape(-1)

    # -- its numbers: how verification bounds a difference -------------------------------------------

    def sum_terms(self, *bottoms: Shape) -> int | None:
        """How many products each value of the top is the sum of, bias included; ``None`` if it is no sum.

        A convolution of 3 x 3 over 64 channels has 577. Two engines that add the same terms in
        another order differ by a bound that follows from this number and from :meth:`magnitudes`.
        """
        return None

    def multiply_adds(self, *bottoms: Shape) -> int | None:
        """How many products the layer computes and adds, for all of its tops; ``None`` if it computes no sums.

        By default :meth:`sum_terms` times the number of values in the tops. A convolution of 3 x 3 over 64 channels
        that makes 128 x 56 x 56 values has 576 x 128 x 56 x 56 = 231,211,008; a bias is no product.
        """
        layer: Any = self
        terms = self.sum_terms(*bottoms)
        return None if terms is None else terms * sum(map(count, layer.infer(*bottoms)))

    def magnitudes(self) -> Layer:
        """For a sum: the layer that adds the terms' magnitudes, when it is fed the inputs' magnitudes.

        By default the layer with the magnitudes of its blobs.
        """
        return self.with_changed(dict.fromkeys(self.blobs, np.abs))

    def with_changed(self, changes: Mapping[str, Callable[[np.ndarray], np.ndarray]]) -> Layer:
        """The layer with a function applied to the values of some roles, when they are asked for."""
        blobs = {
            role: _changed(blob, changes[role]) if role in changes else blob for role, blob in self.blobs.entries()
        }
        layer: Any = self
        made: Layer = layer.changed(blobs=Blobs(blobs))
        return made

    def rounding_bound(self, unit: float, *bottoms: np.ndarray) -> np.ndarray | None:
        """The largest difference that rounding explains for each value of the first top; ``None`` for the default.

        For a layer whose steps in between are much larger than its result: the running sums of LRN,
        the mean of an MVN whose channel is nearly constant.

        Args:
            unit: The relative error of one rounding, as a bound for two engines. A sum of k terms in any order
                has ``sqrt(k)`` times as much, relative to the sum of the terms' magnitudes.
            bottoms: The inputs, float64.
        """
        return None

    adds_many: ClassVar[bool] = True
    """On the way the layer may add up many values of a sample, though its result is no plain sum.

    True by default, which is safe; False where a value of the top comes of few values, such as ReLU.
    """

    def summed_axes(self, rank: int) -> Shape:
        """Axes of the first bottom over which the layer adds up, such as MVN's for its mean; empty for none.

        By default all but the first where the type :attr:`adds_many`. For a bottom of 32 x 224 x 224 in two
        groups, a group normalisation adds up 16 x 224 x 224 values, and rounds as many times.

        Args:
            rank: The bottom's number of axes.
        """
        return tuple(range(1, rank)) if self.adds_many else ()

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Values of the first input at which the formula changes: 0 for ReLU, 0 and 6 for ReLU6.

        Verification draws inputs on both sides of each.
        """
        return ()

    @property
    def takes_largest(self) -> bool:
        """Each value of the top is the largest of the inputs' values there: an Eltwise of MAX.

        Verification then lets each input be the largest somewhere.
        """
        return False

    @property
    def chooses(self) -> bool:
        """The layer picks among its inputs, so that a small change may change everything: ArgMax, DetectionOutput."""
        return False

    def before_suppression(self) -> Layer | None:
        """For a layer that drops boxes that overlap better ones: a layer that puts out all; ``None`` for any other.

        It takes the layer's place in a model for runtimes that cannot suppress.
        """
        return None

    def detections(self, top: int) -> DetectionRows | None:
        """For a top whose rows are detections, what its columns are; ``None`` for any other.

        Verification then matches rows in any order, and leaves out those that only fill up.

        Args:
            top: Which of the tops, 0 for the first.
        """
        return None

    rounds_near_one: ClassVar[bool] = True
    """On the way the layer rounds numbers as large as 1 or as its largest input, where its result is small.

    True for ``1 + exp(x)`` and the like, and by default; a type that only moves, compares or
    multiplies values says False, and is then held to a narrower bound.
    """

    def position_extent(self, *bottoms: Shape) -> int:
        """For a layer that computes places between pixels: the largest place, in pixels. Else 1.

        A place near 500 has an error 500 times that of a place near 1.
        """
        return 1

    float16_safe: ClassVar[bool] = False
    """The layer may compute in float16.

    False, the default, for a layer whose squares or sums leave float16's range (65504), or that
    computes with places and indices, of which float16 has 2,048.
    """

    @property
    def needs_float32(self) -> bool:
        """A float16 export keeps this layer in float32: by default where the type is not :attr:`float16_safe`."""
        return not self.float16_safe

    def fill(self, bottom: int) -> Fill | None:
        """How to make a random input for a bottom that takes places or flags; ``None`` if any number will do.

        Args:
            bottom: Which of the bottoms, 0 for the first.
        """
        return None


def _changed(blob: Blob, change: Callable[[np.ndarray], np.ndarray]) -> Blob:
    return Blob(blob.shape, blob.dtype, lambda: change(blob.numpy()))
