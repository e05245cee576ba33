"""BatchNorm: Caffe's normalisation without an affine part, and NVCaffe's with one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import UsageError
from bridge.layers.base import NeuronLayer, Params, layer_type
from bridge.schema import Blob, Blobs, Layer, Net, Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("BatchNorm")
class BatchNorm(NeuronLayer):
    """``(x - mean) / sqrt(variance + eps)`` per channel.

    Blobs: ``mean`` (C) and ``variance`` (C), both multiplied by ``scale_factor`` (1).
    A scale factor of 0 means mean and variance 0, as in BVLC Caffe; for files in which it
    does not, see :func:`read_zero_scale_factors`.

    NVCaffe's form has two more, ``gamma`` (C) and ``beta`` (C). It takes mean and variance as
    they are, an ``eps`` of at least 1e-5, and at test time always the stored statistics. Its
    versions before 0.16 store the five in other orders, see :data:`_ORDERS`; they are brought to this one.

    Attributes:
        use_global_stats: Use the stored statistics; by default at test time, not in training.
        moving_average_fraction: How much of the running sums stays at each training step.
        eps: Added to the variance.
        scale_bias: Whether it is NVCaffe's form; five stored blobs make it that as well.

    Source: caffe.proto ``BatchNormParameter``, batch_norm_layer.cpp of BVLC Caffe and NVCaffe;
    ONNX ``BatchNormalization``.
    """

    float16_safe = True
    rounds_near_one = False
    normalises = True
    message = "batch_norm_param"
    ranks = {"mean": 1, "variance": 1, "scale_factor": 1, "gamma": 1, "beta": 1}
    filler_fields = {"gamma": "scale_filler"}

    use_global_stats: bool | None = None
    moving_average_fraction: float = 0.999
    eps: float = 1e-5
    scale_bias: bool = False

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        values["scale_bias"] |= "scale_filler" in p or "bias_filler" in p
        return values

    def with_blobs(self, blobs: Sequence[Blob]) -> BatchNorm:
        if len(blobs) != 5:
            return super().with_blobs(blobs)
        stored = dict(zip(_ORDERS[_version(blobs)], blobs, strict=True))
        form = dataclasses.replace(self, scale_bias=True)
        return super(BatchNorm, form).with_blobs([stored[role] for role in form.roles(5)])

    def __post_init__(self) -> None:
        if self.scale_bias:
            object.__setattr__(self, "eps", max(self.eps, float(np.float32(1e-5))))

    def roles(self, stored: int) -> tuple[str, ...]:
        affine = self.scale_bias or stored == 5
        return ("mean", "variance", "scale_factor", *(("gamma", "beta") if affine else ()))

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) < 2:
            raise self.fail(f"the input has {len(bottoms[0])} axes", expected="at least 2")
        return (bottoms[0],)

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        return {role: (1,) if role == "scale_factor" else (bottoms[0][1],) for role in self.roles(0)}

    @property
    def by_batch(self) -> bool:
        """Whether it is the batch's own statistics that count at test time."""
        return self.use_global_stats is False and not self.scale_bias

    @property
    def needs_float32(self) -> bool:
        return self.by_batch  # it squares what it is given

    @property
    def uses_batch(self) -> bool:
        return self.use_global_stats is not True

    @property
    def scaled_statistics(self) -> bool:
        return not self.scale_bias

    def sum_terms(self, *bottoms: Shape) -> int | None:
        return None if self.by_batch else 2

    def magnitudes(self) -> Layer:
        # |x| + |mean| over the deviation: the mean, which is subtracted, has its sign turned
        factor = self.blobs["scale_factor"] if "scale_factor" in self.blobs else np.ones(1, np.float32)
        sign = np.float32(-1 if np.all(factor >= 0) else 1)
        return self.with_changed({"mean": lambda mean: np.abs(mean) * sign, "gamma": np.abs, "beta": np.abs})

    def summed_axes(self, rank: int) -> Shape:
        return (0, *range(2, rank)) if self.by_batch else ()

    def statistics_values(self) -> tuple[np.ndarray, np.ndarray]:
        """The effective mean and variance, each (C) float32."""
        factor = np.float32(self.blobs["scale_factor"].reshape(-1)[0])
        inverse = np.float32(1) if self.scale_bias else np.float32(0) if factor == 0 else np.float32(1) / factor
        mean, variance = self.blobs["mean"], self.blobs["variance"]
        return mean.astype(np.float32) * inverse, variance.astype(np.float32) * inverse

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        if self.by_batch:
            axes = self.summed_axes(len(g.shape(x[0])))
            centred = g.Sub(x[0], g.reduce("Mean", x[0], axes))
            square = g.reduce("Mean", g.Mul(centred, centred), axes)
            return g.Div(centred, g.Sqrt(g.Add(square, g.const(np.float32(self.eps)))))
        mean, variance = self.statistics_values()
        gamma = g.blob(self, "gamma") if self.scale_bias else g.const(np.ones_like(mean), f"{self.name}.gamma")
        beta = g.blob(self, "beta") if self.scale_bias else g.const(np.zeros_like(mean), f"{self.name}.beta")
        statistics = [
            g.const(values, f"{self.name}.{role}", role) for role, values in (("mean", mean), ("variance", variance))
        ]
        g.merge("scale_factor", 1.0)
        return g.BatchNormalization(x[0], gamma, beta, *statistics, epsilon=self.eps)

    def chainer_tail(self, F: ChainerFunctions, link: LayerArrays) -> Any:
        return F.caffe_batch_norm_tail(link, self)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return F.caffe_batch_norm(x[0], link, self)


_ORDERS = {
    "0.14": ("gamma", "beta", "scale_factor", "mean", "variance"),
    "0.15": ("gamma", "beta", "mean", "variance", "scale_factor"),
    "0.16": ("mean", "variance", "scale_factor", "gamma", "beta"),
}
"""What NVCaffe's versions store, in order. The one value that they have in the place of a scale factor is not used.

Source: cudnn_batch_norm_layer.cpp of NVCaffe 0.14 and 0.15, ``Net::CopyTrainedLayersFrom`` of 0.17.
"""


def _version(blobs: Sequence[Blob]) -> str:
    """Which version's order five blobs have: 0.15 has the single value last, 0.14 shapes (1, C, 1, 1)."""
    if blobs[4].size == 1 < blobs[2].size:
        return "0.15"
    channels_first = len(blobs[0].shape) == 4 and blobs[0].shape == (1, blobs[0].size, 1, 1)
    return "0.14" if channels_first and blobs[2].size == 1 else "0.16"


def notes_on_statistics(net: Net, with_definition: bool) -> list[str]:
    """Remarks on statistics that make a net useless, or that are not used.

    Args:
        net: The net.
        with_definition: Whether the net's definition is a prototxt; else it is the one stored beside the weights.

    Returns:
        A line for the layers of negative variance, whose outputs are NaN, and one for those of a training
        snapshot, which compute their own statistics.
    """
    layers = [layer for layer in net.layers if isinstance(layer, BatchNorm)]
    negative = [layer for layer in layers if layer.blobs and not layer.by_batch and _is_negative(layer)]
    notes = []
    if negative:
        notes.append(f"{_named(negative)}: a variance below 0: its root is NaN, and so is all that is computed from it")
    snapshot = [layer for layer in layers if layer.blobs and layer.by_batch]
    if snapshot and not with_definition:
        notes.append(
            f"{_named(snapshot)}: use_global_stats is false, as in a snapshot of training: the statistics of the batch "
            "are used, not the stored ones; a prototxt for deployment, given as well, changes that"
        )
    return notes


def _is_negative(layer: BatchNorm) -> bool:
    with np.errstate(all="ignore"):  # a weight may be any number, or none
        return bool((layer.statistics_values()[1] + np.float32(layer.eps) <= 0).any())


def _named(layers: Sequence[BatchNorm]) -> str:
    return layers[0].label + (f" and {len(layers) - 1} more" if len(layers) > 1 else "")


def read_zero_scale_factors(net: Net, meaning: str) -> Net:
    """Settle what a BatchNorm's scale factor of 0 beside statistics other than 0 means.

    BVLC Caffe computes with mean and variance 0 then. NVCaffe before 0.16.5 wrote such files
    and meant the statistics as they stand.

    Args:
        net: The net.
        meaning: ``bvlc`` leaves such layers as they are and adds a note about them;
            ``nvcaffe`` makes their scale factor 1.

    Raises:
        UsageError: ``meaning`` is neither.

    Source: batch_norm_layer.cpp of BVLC Caffe and NVCaffe; NVIDIA/caffe issue 436.
    """
    if meaning not in ("bvlc", "nvcaffe"):
        raise UsageError(f"zero_scale_factor is '{meaning}'", expected="bvlc or nvcaffe")
    found = [layer.name for layer in net.layers if isinstance(layer, BatchNorm) and _doubtful(layer)]
    if not found:
        return net
    if meaning == "nvcaffe":
        names = set(found)
        layers = tuple(_with_factor_one(layer) if layer.name in names else layer for layer in net.layers)
        return net.replace(layers=layers)
    which = f"layer '{found[0]}'" + (f" and {len(found) - 1} more" if len(found) > 1 else "")
    return net.replace(
        notes=(
            *net.notes,
            f"{which}: BatchNorm has scale factor 0 beside other statistics than 0 and computes with mean and variance "
            "0, as BVLC Caffe does; if NVCaffe before 0.16.5 wrote the file, read it with zero_scale_factor nvcaffe",
        )
    )


def _doubtful(layer: BatchNorm) -> bool:
    if "scale_factor" not in layer.blobs or layer.scale_bias or np.count_nonzero(layer.blobs["scale_factor"]):
        return False
    return bool(np.count_nonzero(layer.blobs["mean"]) or np.count_nonzero(layer.blobs["variance"]))


def _with_factor_one(layer: Layer) -> Layer:
    blobs = dict(layer.blobs.entries())
    blobs["scale_factor"] = Blob.of(np.ones_like(layer.blobs["scale_factor"]))
    return dataclasses.replace(layer, blobs=Blobs(blobs))
