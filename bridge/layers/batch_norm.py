"""BatchNorm: Caffe's normalisation without an affine part, and NVCaffe's with one."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.layers.base import CaffeLayer, layer_type
from bridge.schema import Shape


@layer_type("BatchNorm")
class BatchNorm(CaffeLayer):
    """``(x - mean) / sqrt(variance + eps)`` per channel.

    Blobs: ``mean`` (C) and ``variance`` (C), both multiplied by ``scale_factor`` (1);
    NVCaffe adds ``gamma`` (C) and ``beta`` (C).
    A scale factor of 0 means mean and variance 0, as in BVLC Caffe.

    Attributes:
        use_global_stats: Use the stored statistics; by default at test time, not in training.
        moving_average_fraction: How much of the running sums stays at each training step.
        eps: Added to the variance.

    Source: caffe.proto ``BatchNormParameter``, batch_norm_layer.cpp; ONNX ``BatchNormalization``.
    """

    message = "batch_norm_param"
    ignored = frozenset({"engine", "scale_filler", "bias_filler", "scale_bias"})

    use_global_stats: bool | None = None
    moving_average_fraction: float = 0.999
    eps: float = 1e-5

    def roles(self, stored: int) -> tuple[str, ...]:
        affine = ("gamma", "beta") if stored == 5 else ()
        return ("mean", "variance", "scale_factor", *affine)

    def blob_shapes(self, *bottoms: Shape) -> dict[str, Shape]:
        channels = bottoms[0][1] if len(bottoms[0]) > 1 else 1
        roles = self.roles(len(self.blobs) or 3)
        return {role: (1,) if role == "scale_factor" else (channels,) for role in roles}

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return (bottoms[0],)

    def statistics_values(self) -> tuple[np.ndarray, np.ndarray]:
        """The effective mean and variance, each (C) float32."""
        factor = np.float32(self.blobs["scale_factor"].reshape(-1)[0])
        inverse = np.float32(0) if factor == 0 else np.float32(1) / factor
        mean, variance = self.blobs["mean"], self.blobs["variance"]
        return mean.astype(np.float32) * inverse, variance.astype(np.float32) * inverse

    def to_onnx(self, g: Any, *x: str) -> str:
        mean, variance = self.statistics_values()
        ones, zeros = np.ones_like(mean), np.zeros_like(mean)
        gamma = g.blob(self, "gamma") if "gamma" in self.blobs else g.const(ones, f"{self.name}.gamma")
        beta = g.blob(self, "beta") if "beta" in self.blobs else g.const(zeros, f"{self.name}.beta")
        return str(
            g.BatchNormalization(
                x[0], gamma, beta, g.const(mean, f"{self.name}.mean"), g.const(variance, f"{self.name}.variance"),
                epsilon=self.eps,
            )
        )  # fmt: skip

    def to_chainer(self, F: Any, link: Any, *x: Any) -> Any:
        return F.caffe_batch_norm(x[0], link, self)
