"""Chainer: a net as a trainable chain, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.chain.back import from_chain
    from bridge.chain.build import NetChain, build_chain
    from bridge.chain.caffe_function import CaffeFunction
    from bridge.chain.freezing import DelGradient, freeze, is_frozen, thaw
    from bridge.chain.transplant import TransplantReport, transplant

_HOMES = {
    "CaffeFunction": "bridge.chain.caffe_function",
    "NetChain": "bridge.chain.build",
    "build_chain": "bridge.chain.build",
    "from_chain": "bridge.chain.back",
    "DelGradient": "bridge.chain.freezing",
    "freeze": "bridge.chain.freezing",
    "is_frozen": "bridge.chain.freezing",
    "thaw": "bridge.chain.freezing",
    "TransplantReport": "bridge.chain.transplant",
    "transplant": "bridge.chain.transplant",
}
__all__ = [
    "CaffeFunction", "DelGradient", "NetChain", "TransplantReport", "build_chain", "freeze", "from_chain", "is_frozen",
    "thaw", "transplant",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bridge.chain' has no attribute '{name}'")
    import importlib
    import sys

    value = getattr(importlib.import_module(_HOMES[name]), name)
    setattr(sys.modules[__name__], name, value)  # a submodule of that name must not hide it
    return value
