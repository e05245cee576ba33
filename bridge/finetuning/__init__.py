"""Fine-tuning on Chainer: frozen layers, a new head, and back to ONNX and caffemodel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy

if TYPE_CHECKING:
    from bridge.finetuning.api import finetune as finetune
    from bridge.finetuning.blas import exact_arithmetic as exact_arithmetic
    from bridge.finetuning.config import Config as Config
    from bridge.finetuning.listener import Listener as Listener
    from bridge.finetuning.predict import classify as classify
    from bridge.finetuning.predict import read_images as read_images
    from bridge.finetuning.recipe import Recipe as Recipe
    from bridge.finetuning.recipe import read_solver as read_solver
    from bridge.finetuning.rules import CaffeOptimizer as CaffeOptimizer
    from bridge.finetuning.run import Run as Run
    from bridge.finetuning.training import CachedTrunk as CachedTrunk
    from bridge.finetuning.training import Freeze as Freeze
    from bridge.finetuning.training import RateSchedule as RateSchedule
else:
    __all__ = lazy(
        __name__,
        {
            "exact_arithmetic": "bridge.finetuning.blas",
            "Config": "bridge.finetuning.config",
            "Listener": "bridge.finetuning.listener",
            "classify": "bridge.finetuning.predict",
            "read_images": "bridge.finetuning.predict",
            "Recipe": "bridge.finetuning.recipe",
            "read_solver": "bridge.finetuning.recipe",
            "CaffeOptimizer": "bridge.finetuning.rules",
            "Run": "bridge.finetuning.run",
            "CachedTrunk": "bridge.finetuning.training",
            "Freeze": "bridge.finetuning.training",
            "RateSchedule": "bridge.finetuning.training",
            "finetune": "bridge.finetuning.api",
        },
    )
