"""Exporting: a net, or a chain of the user's own, to an ONNX file that is checked before it appears."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.exporting.chain import export_chain
    from bridge.exporting.net import export_onnx

_HOMES = {"export_chain": "bridge.exporting.chain", "export_onnx": "bridge.exporting.net"}
__all__ = ["export_chain", "export_onnx"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bridge.exporting' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
