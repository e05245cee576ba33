"""Tests that every layer type has to pass, for authors of layer types to inherit.

It needs pytest and Hypothesis: the extra ``testing``.
"""

from bridge.testing.cases import CASES, LayerCase, layer_case
from bridge.testing.contract import LayerContract

__all__ = ["CASES", "LayerCase", "LayerContract", "layer_case"]
