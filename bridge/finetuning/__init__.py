"""Fine-tuning on Chainer: frozen layers, a new head, and back to ONNX and caffemodel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.finetuning.blas import exact_arithmetic
    from bridge.finetuning.config import Config
    from bridge.finetuning.predict import classify, read_images
    from bridge.finetuning.recipe import Recipe, read_solver
    from bridge.finetuning.run import Run, finetune

_HOMES = {
    "exact_arithmetic": "bridge.finetuning.blas",
    "Config": "bridge.finetuning.config",
    "Recipe": "bridge.finetuning.recipe",
    "classify": "bridge.finetuning.predict",
    "read_images": "bridge.finetuning.predict",
    "read_solver": "bridge.finetuning.recipe",
    "Run": "bridge.finetuning.run",
    "finetune": "bridge.finetuning.run",
}
__all__ = ["Config", "Recipe", "Run", "classify", "exact_arithmetic", "finetune", "read_images", "read_solver"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bridge.finetuning' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
