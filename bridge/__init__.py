"""Carry trained weights out of Caffe files, and prove that they arrived.

Names are looked up when first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.chain import build_chain, freeze, from_chain, thaw, transplant
    from bridge.exporting import export_onnx
    from bridge.files.load import load
    from bridge.files.writers import save
    from bridge.schema import Blob, Layer, Net
    from bridge.verification import verify

__version__ = "0.1.0"

_HOMES = {
    "BridgeError": "bridge.errors",
    "Blob": "bridge.schema",
    "Layer": "bridge.schema",
    "Net": "bridge.schema",
    "load": "bridge.files.load",
    "save": "bridge.files.writers",
    "export_onnx": "bridge.exporting",
    "verify": "bridge.verification",
    "build_chain": "bridge.chain",
    "from_chain": "bridge.chain",
    "transplant": "bridge.chain",
    "freeze": "bridge.chain",
    "thaw": "bridge.chain",
}

__all__ = [
    "Blob", "BridgeError", "Layer", "Net", "build_chain", "export_onnx", "freeze",
    "from_chain", "load", "save", "thaw", "transplant", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'bridge' has no attribute '{name}'")
    import importlib
    import sys

    value = getattr(importlib.import_module(home), name)
    setattr(sys.modules[__name__], name, value)  # a submodule of that name must not hide it
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
