"""SpatialDropoutLayer: ENet's Python layer, which drops whole channels in training."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.layers.base import ElementwiseLayer, Params, layer_type

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays, OnnxBuilder

_ENTRY = re.compile(r"""['"](\w+)['"]\s*:\s*['"]?([\w.]+)['"]?""")


@layer_type("spatial_dropout.SpatialDropoutLayer")
class SpatialDropout(ElementwiseLayer):
    """``x / (1 - p)`` where ``param_str`` says ``'phase': 'TEST'``; in its phase TRAIN it draws random numbers.

    The factor is there at test time too, unlike that of Dropout.

    Attributes:
        p: The part of the channels that training drops.

    Source: spatial_dropout.py of TimoSaemann/caffe-enet.
    """

    rounds_near_one = False
    message = "python_param"
    harmless = {"module": "names the layer's type", "layer": "names the layer's type"}

    p: float

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        text = p.read("param_str", str, "")
        given = dict(_ENTRY.findall(text))
        if set(given) != {"phase", "p"} or not re.fullmatch(r"0?\.\d+", given["p"]) or not float(given["p"]):
            raise p.fail(f"param_str {text[:60]!r}", expected="{'phase': 'TEST', 'p': '0.1'} with p between 0 and 1")
        if given["phase"] != "TEST":
            raise p.fail(f"param_str names the phase {given['phase']}, in which it draws random numbers")
        return {"p": float(given["p"])}

    @property
    def factor(self) -> np.float32:
        """What every value is multiplied by."""
        return np.float32(1 / (1 - self.p))

    def to_onnx(self, g: OnnxBuilder, *x: str) -> str:
        return str(g.Mul(x[0], g.const(self.factor)))

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return x[0] * self.factor
