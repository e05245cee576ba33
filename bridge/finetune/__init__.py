"""Fine-tuning on Chainer: frozen layers, a new head, and back to ONNX and caffemodel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.finetune.config import Config
    from bridge.finetune.predict import classify, read_images
    from bridge.finetune.recipe import Recipe, read_solver
    from bridge.finetune.run import Run, finetune

_HOMES = {
    "Config": "bridge.finetune.config",
    "Recipe": "bridge.finetune.recipe",
    "classify": "bridge.finetune.predict",
    "read_images": "bridge.finetune.predict",
    "read_solver": "bridge.finetune.recipe",
    "Run": "bridge.finetune.run",
    "finetune": "bridge.finetune.run",
}
__all__ = ["Config", "Recipe", "Run", "classify", "finetune", "read_images", "read_solver"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bridge.finetune' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
