"""The layer types that nets may have."""

from __future__ import annotations

from bridge.layers import REGISTRY
from bridge.layers.base import PYTHON


def layer_type_list() -> list[str]:
    """Caffe's names of the layer types that are known, in alphabetical order, ``Python`` among them.

    Source: layer_factory.hpp ``LayerTypeList``.
    """
    return sorted([*(name for name in REGISTRY if "." not in name), PYTHON])
