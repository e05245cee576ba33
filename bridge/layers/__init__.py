"""Caffe's layer types, one per file. Importing this package registers them all."""

from __future__ import annotations

import importlib
import pkgutil

from bridge.layers.base import (
    REGISTRY,
    CaffeLayer,
    ElementwiseLayer,
    MovingLayer,
    NeuronLayer,
    build_layer,
    layer_type,
)

for _module in pkgutil.iter_modules(__path__):
    if _module.name != "base":
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["REGISTRY", "CaffeLayer", "ElementwiseLayer", "MovingLayer", "NeuronLayer", "build_layer", "layer_type"]
