"""ShuffleChannel: ShuffleNet's exchange between groups of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import MovingLayer, Params, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder


@layer_type("ShuffleChannel")
class ShuffleChannel(MovingLayer):
    """Channel ``j * group + i`` of the top is channel ``i * (C / group) + j`` of the bottom.

    Source: caffe.proto ``ShuffleChannelParameter``, shuffle_channel_layer.cpp; ONNX ``Gather``;
    Zhang et al., ShuffleNet, 2017.
    """

    message = "shuffle_channel_param"
    bottom_count = (1, 1)
    top_count = (1, 1)

    group: int = 1

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        values = super().read(p)
        if values["group"] < 1:
            raise p.fail(f"parameter 'group' is {values['group']}", expected="1 or more")
        return values

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        if len(bottoms[0]) < 2 or bottoms[0][1] % self.group:
            raise self.fail(f"{bottoms[0][1:2]} channels do not divide into {self.group} groups")
        return (bottoms[0],)

    def order(self, channels: int) -> np.ndarray:
        """The bottom's channel for each channel of the top, int64."""
        return np.arange(channels, dtype=np.int64).reshape(self.group, -1).T.reshape(-1)

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return x[0] if self.group == 1 else g.Gather(x[0], g.const(self.order(g.shape(x[0])[1])), axis=1)

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        split = F.reshape(x[0], (x[0].shape[0], self.group, -1, *x[0].shape[2:]))
        return F.reshape(F.swapaxes(split, 1, 2), x[0].shape)
