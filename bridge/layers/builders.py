"""What the methods of a layer are given: the ONNX builder ``g``, the functions ``F`` and the arrays ``link``.

Protocols, so that a layer file imports no framework and is type-checked all the same::

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return g.Add(x[0], g.const(np.float32(self.shift)))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.sigmoid(x[0]) * link.W
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, overload

from bridge.schema import Layer, Shape

if TYPE_CHECKING:
    from bridge.layers.accuracy import Accuracy
    from bridge.layers.batch_norm import BatchNorm
    from bridge.layers.bn import BN
    from bridge.layers.contrastive_loss import ContrastiveLoss
    from bridge.layers.hinge_loss import HingeLoss
    from bridge.layers.infogain_loss import InfogainLoss
    from bridge.layers.multinomial_logistic_loss import MultinomialLogisticLoss
    from bridge.layers.pooling import Pooling
    from bridge.layers.psroi_pooling import PSROIPooling
    from bridge.layers.sigmoid_cross_entropy_loss import SigmoidCrossEntropyLoss
    from bridge.layers.softmax_with_loss import SoftmaxWithLoss


class Extents(Protocol):
    """The shape of a bottom in an exported graph, as :meth:`OnnxBuilder.shape` returns it.

    An extent may be open: it is known only when the model runs. Whoever reads an open extent fixes it
    in the exported model, to its value in the net's own input shapes.

    For example, with (batch, 3, 224, 224) and ``batch`` open, ``shape[1]`` is 3, ``shape[2:]`` is (224, 224),
    ``len(shape)`` is 4, ``shape.fixed(0)`` is False, and ``shape[0]`` fixes the batch size.

    Source: :class:`bridge.onnx_export.dims.Dims`.
    """

    def __len__(self) -> int:
        """The number of axes."""

    @overload
    def __getitem__(self, index: int, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> Shape: ...

    def __iter__(self) -> Iterator[int]:
        """All extents, which fixes them."""

    @property
    def extents(self) -> Shape:
        """All extents at the net's own input shapes, without fixing them: only to decide whether one is to be read."""

    def fixed(self, axis: int) -> bool:
        """Whether the extent of an axis is known without fixing it."""


class OnnxBuilder(Protocol):
    """Emits the ONNX nodes of a layer: the argument ``g`` of :meth:`bridge.schema.Layer.to_onnx`.

    Each ONNX operator is a method with the operator's name. It takes the names of its inputs and its
    attributes by name, adds one node, and returns the name of its output: ``g.Softmax(x[0], axis=1)``.
    An input ``""`` is left out, as in ONNX; an attribute ``None`` too. :meth:`op` serves operators with
    several outputs.

    Source: :class:`bridge.onnx_export.builder.GraphBuilder`; ONNX ``Operators.md``.
    """

    @property
    def FLOAT(self) -> int:
        """ONNX's number of float32, for ``g.Cast(x, to=g.FLOAT)``."""

    @property
    def INT64(self) -> int:
        """ONNX's number of int64."""

    @property
    def opset(self) -> int:
        """The version of ONNX's operator set, such as 17."""

    def __getattr__(self, op_type: str) -> Callable[..., str]:
        """An ONNX operator with one output.

        Raises:
            AttributeError: The name does not begin with a capital letter.
        """

    def op(self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node with any number of outputs.

        For example, ``places, values = g.op("TopK", x, g.ints([5]), outputs=2, axis=1)``.

        Args:
            op_type: The operator.
            inputs: Names of values.
            outputs: Number of outputs.
            domain: The operator's domain; by default ONNX's own.
            attributes: Numbers, text, arrays, or lists of them.

        Returns:
            The names of its outputs.
        """

    def custom(self, layer: Layer, *inputs: str, reason: str) -> list[str]:
        """Add a node of this project's own domain, for what standard ONNX cannot express.

        Its inputs are the layer's bottoms and then its blobs, its attributes the layer's parameters.

        Args:
            layer: The layer.
            inputs: Names of its bottoms.
            reason: Why standard ONNX cannot express it, for the message.

        Returns:
            The name of each top.

        Raises:
            UnsupportedLayerError: The user does not allow such nodes.
        """

    def shape(self, value: str) -> Extents:
        """The shape of one of the layer's bottoms.

        Args:
            value: The name of a bottom, not of a value that the layer computes.
        """

    def blob(self, layer: Layer, role: str, shape: Sequence[int] | None = None) -> str:
        """A stored blob as an initializer, one for all layers that share it.

        Args:
            layer: The layer.
            role: The role of the blob, such as ``weight``.
            shape: Another shape with as many values, where the operator needs one; by default the stored one.

        Returns:
            The name of the initializer.
        """

    def merge(self, role: str, neutral: float) -> None:
        """Note that a blob of the layer was computed into other initializers.

        A reader of the exported file then gives the role the value ``neutral``: BatchNorm notes
        ``g.merge("scale_factor", 1.0)`` after it has divided mean and variance by the factor.

        Args:
            role: The role of the blob.
            neutral: The value of the blob with which the others have the written values.
        """

    def const(self, array: Any, name: str = "", role: str = "") -> str:
        """Values as an initializer; equal small ones are shared.

        Args:
            array: Numbers or an array, float32, int64 or bool.
            name: Name of the initializer; by default made from the layer's name.
            role: The blob of the layer that a reader of the exported file gives these values, if there is one.

        Returns:
            The name of the initializer.
        """

    def ints(self, values: Sequence[int]) -> str:
        """A 1-D int64 initializer, which ONNX takes for shapes, axes and positions.

        Args:
            values: Numbers, such as ``[0, -1]``.

        Returns:
            The name of the initializer.
        """

    def reduce(self, kind: str, x: str, axes: Sequence[int], keepdims: bool = True) -> str:
        """``ReduceMean``, ``ReduceSum`` and the like, in the form of the operator set.

        Args:
            kind: The name without ``Reduce``, such as ``Mean``.
            x: Name of a value.
            axes: The axes to reduce.
            keepdims: Whether these axes stay, with extent 1.

        Returns:
            The name of the result.
        """

    def reshape(self, x: str, extents: Sequence[int], rest: int | None = None) -> str:
        """``Reshape`` that leaves open extents open.

        For example, with x of shape (N, 3, H, W), ``g.reshape(x, [-1], 2)`` gives (3 N, H, W).

        Args:
            x: The name of a bottom.
            extents: The new extents; 0 keeps the extent at that place, one -1 takes what is left.
            rest: The axes of ``x`` from this one on follow ``extents``; by default none.

        Returns:
            The name of the result.
        """

    def extents(self, x: str, start: int, stop: int) -> str:
        """The extents of the axes ``start`` to ``stop`` of a bottom, read when the model runs.

        Args:
            x: The name of a bottom.
            start: The first axis.
            stop: The axis after the last one.

        Returns:
            The name of a 1-D int64 value.
        """


class LayerArrays(Protocol):
    """The arrays of a layer in a chain: the argument ``link`` of :meth:`bridge.schema.Layer.to_chainer`.

    Each array is an attribute with the name that ``chainer_params`` of the layer type gives its role, or with
    the role itself: ``link.W`` and ``link.b`` for ``weight`` and ``bias``, ``link.gamma``. Parameters
    are ``chainer.Parameter``, running statistics NumPy or CuPy arrays, in Caffe's shape; a layer type may assign
    statistics anew.

    Source: :class:`bridge.chain.build.LayerLink`; ``chainer.Link``.
    """

    @property
    def xp(self) -> Any:
        """NumPy or CuPy, by the device that the chain is on."""

    @property
    def frozen(self) -> bool:
        """Whether statistics stay as they are in training too."""

    def __getattr__(self, name: str) -> Any:
        """An array.

        Raises:
            AttributeError: The layer has no such array.
        """

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign new values to a statistic, of the same shape and dtype."""


class ChainerFunctions(Protocol):
    """Chainer's functions and Caffe's: the argument ``F`` of :meth:`bridge.schema.Layer.to_chainer`.

    Declared here are the functions of this project. All other functions of ``chainer.functions`` are
    attributes as well: ``F.reshape``, ``F.relu``. A function with a name of Chainer's has Chainer's arguments
    and Caffe's bits on the CPU; ``caffe_pooling`` is the function of the layer type in ``layers/pooling.py``.
    Arrays are NumPy's or CuPy's, variables ``chainer.Variable``, and results are differentiable
    except those of ``caffe_accuracy`` and ``caffe_arg_max``.

    Source: :mod:`bridge.chain.functions`, one file per layer type.
    """

    @property
    def chainer(self) -> Any:
        """The module ``chainer`` itself."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A function of ``chainer.functions``.

        Raises:
            AttributeError: Chainer has no such function.
        """

    # -- any layer ---------------------------------------------------------------------

    def as_variable(self, obj: Any) -> Any:
        """An array as a variable without gradient; a variable as it is."""

    def fold_batch_axes(self, x: Any, axis: int, function: Callable[[Any], Any]) -> Any:
        """Apply ``function`` to ``x`` with all axes before the channel axis ``axis`` as one batch axis."""

    # -- Chainer's functions, with Caffe's bits -----------------------------------------

    def dropout(self, x: Any, ratio: float = 0.5) -> Any:
        """In training, zeros with the probability ``ratio``, the other values times ``1 / (1 - ratio)``; any shape."""

    def elu(self, x: Any, alpha: float = 1.0) -> Any:
        """``x`` where it is positive, ``alpha (exp(x) - 1)`` elsewhere; any shape."""

    def linear(self, x: Any, W: Any, b: Any = None, n_batch_axes: int = 1) -> Any:
        """``x W^T + b``, (batch axes..., outputs), of (batch axes..., axes...), W (outputs, inputs) and b (outputs)."""

    def local_response_normalization(
        self, x: Any, n: int = 5, k: float = 2, alpha: float = 1e-4, beta: float = 0.75
    ) -> Any:
        """``x (k + alpha * sum x^2)^-beta`` of (N, C, ...), the sum over ``n`` channels around each."""

    def relu(self, x: Any) -> Any:
        """``max(0, x)``; any shape."""

    def sigmoid(self, x: Any) -> Any:
        """``1 / (1 + exp(-x))``; any shape."""

    def softmax(self, x: Any, axis: int = 1) -> Any:
        """``exp(x) / sum exp(x)``, the sum along ``axis``; any shape."""

    # -- Caffe's functions --------------------------------------------------------------

    def tail(self, factor: Any = None, shift: Any = None, positive: bool = False) -> Any:
        """What may be computed with the layer before: ``max(0, x * factor + shift)`` per channel, or a part of it."""

    def caffe_accuracy(self, x: Any, labels: Any, layer: Accuracy) -> tuple[Any, ...]:
        """The share of right predictions, a number; with two tops also that of each class, (classes)."""

    def caffe_arg_max(self, x: Any, k: int, axis: int) -> tuple[Any, Any]:
        """Places and values of the ``k`` largest along ``axis`` of an array; of equal ones the last comes first."""

    def caffe_batch_norm(self, x: Any, link: LayerArrays, layer: BatchNorm) -> Any:
        """BatchNorm of (N, C, ...), which updates the statistics in training."""

    def caffe_batch_norm_tail(self, link: LayerArrays, layer: BatchNorm) -> Any:
        """What BatchNorm does to each channel by its stored statistics; ``None`` where it takes those of the batch."""

    def caffe_bn(self, x: Any, link: LayerArrays, layer: BN) -> Any:
        """BN of (N, C, ...), which updates the statistics in training."""

    def caffe_contrastive_loss(self, a: Any, b: Any, alike: Any, layer: ContrastiveLoss) -> Any:
        """The loss, a number, of pairs (N, ...) and (N, ...) with N labels: 0 where the pair is not similar."""

    def caffe_convolution(
        self, x: Any, W: Any, b: Any, stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int], groups: int,
        tail: Any = None,
    ) -> Any:  # fmt: skip
        """Convolution of (N, C, spatial axes...) with W (O, C / groups, kernel...), b (O) or ``None``, and a tail."""

    def caffe_deconvolution(
        self, x: Any, W: Any, b: Any, stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int], groups: int
    ) -> Any:
        """Transposed convolution of (N, C, spatial axes...) with W (C, O / groups, kernel...) and b (O) or ``None``."""

    def caffe_hinge_loss(self, x: Any, labels: Any, layer: HingeLoss) -> Any:
        """The loss, a number, of (N, classes, ...) with N labels."""

    def caffe_infogain_loss(self, x: Any, labels: Any, matrix: Any, layer: InfogainLoss) -> Any:
        """The loss, a number, of (axes..., classes, axes...) with a label per place and classes x classes weights."""

    def caffe_interp(self, x: Any, space: Shape) -> Any:
        """(N, C, H, W) resized to the (height, width) ``space``, bilinear, the corners kept."""

    def caffe_multinomial_logistic_loss(self, x: Any, labels: Any, layer: MultinomialLogisticLoss) -> Any:
        """The loss, a number, of probabilities (N, classes, ...) with N labels."""

    def caffe_pooling(self, x: Any, layer: Pooling) -> Any:
        """The top (N, C, rows, columns) of (N, C, H, W); with two tops a tuple of maxima and their places."""

    def caffe_psroi_pooling(self, x: Any, rois: Any, layer: PSROIPooling) -> Any:
        """Means in cells of regions (R, 5): (R, output_dim, group_size, group_size)."""

    def caffe_roi_pooling(self, x: Any, rois: Any, pooled: Shape, scale: float) -> Any:
        """Maxima in cells of regions (R, 5) of (N, C, H, W): (R, C, height, width) for ``pooled`` (height, width)."""

    def caffe_sigmoid_cross_entropy_loss(self, x: Any, targets: Any, layer: SigmoidCrossEntropyLoss) -> Any:
        """The loss, a number, of values of any shape with as many targets."""

    def caffe_softmax_with_loss(self, x: Any, labels: Any, layer: SoftmaxWithLoss) -> Any:
        """The loss, a number, of (axes..., classes, axes...) with a label per place."""

    def caffe_eltwise_sum(self, terms: Sequence[Any], tail: Any = None) -> Any:
        """The sum of variables of one shape, and what follows it."""

    def caffe_upsample(self, x: Any, mask: Any, space: Shape) -> Any:
        """(N, C, H, W) at the places ``mask``, of the same shape, in planes of (height, width) ``space``."""


__all__ = ["ChainerFunctions", "Extents", "LayerArrays", "OnnxBuilder"]
