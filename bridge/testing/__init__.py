"""Tests that every layer type has to pass, for authors of layer types to inherit."""

from bridge.testing.cases import CASES, LayerCase, layer_case

__all__ = ["CASES", "LayerCase", "layer_case"]
