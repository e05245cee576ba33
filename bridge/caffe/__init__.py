"""pycaffe without Caffe: ``from bridge import caffe``, and the script goes on as it did.

All names are those of BVLC Caffe 1.0's own module. :func:`install` makes ``import caffe`` mean this
package; ``python -m bridge.caffe SCRIPT.py ARGS`` does so for a script that stays as it is.

Names are looked up when first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.caffe import coord_map, draw, io, net_spec, proto
    from bridge.caffe.classifier import Classifier
    from bridge.caffe.detector import Detector
    from bridge.caffe.installing import install
    from bridge.caffe.layer import Layer
    from bridge.caffe.net import Net
    from bridge.caffe.net_spec import NetSpec, layers, params, to_proto
    from bridge.caffe.solvers import (
        AdaDeltaSolver,
        AdaGradSolver,
        AdamSolver,
        NesterovSolver,
        RMSPropSolver,
        SGDSolver,
        get_solver,
    )
    from bridge.caffe.state import (
        NCCL,
        Timer,
        has_nccl,
        init_glog,
        init_log,
        log,
        set_device,
        set_mode_cpu,
        set_mode_gpu,
        set_multiprocess,
        set_random_seed,
        set_solver_count,
        set_solver_rank,
        solver_count,
        solver_rank,
    )
    from bridge.caffe.types import layer_type_list

__version__ = "1.0.0"
"""The version of Caffe whose interface this is."""

TRAIN, TEST = 0, 1
"""The phases. Source: caffe.proto ``Phase``."""

_SOLVERS = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
_STATE = (
    "NCCL", "Timer", "has_nccl", "init_glog", "init_log", "log", "set_device", "set_mode_cpu", "set_mode_gpu",
    "set_multiprocess", "set_random_seed", "set_solver_count", "set_solver_rank", "solver_count", "solver_rank",
)  # fmt: skip
_HOMES = {
    "Net": "net",
    "Layer": "layer",
    "Classifier": "classifier",
    "Detector": "detector",
    "NetSpec": "net_spec",
    "layers": "net_spec",
    "params": "net_spec",
    "to_proto": "net_spec",
    "install": "installing",
    "layer_type_list": "types",
    "get_solver": "solvers",
    **{f"{name}Solver": "solvers" for name in _SOLVERS},
    **dict.fromkeys(_STATE, "state"),
}
_MODULES = ("_caffe", "classifier", "coord_map", "detector", "draw", "io", "net_spec", "proto", "pycaffe")

__all__ = [
    "NCCL",
    "TEST",
    "TRAIN",
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "Classifier",
    "Detector",
    "Layer",
    "NesterovSolver",
    "Net",
    "NetSpec",
    "RMSPropSolver",
    "SGDSolver",
    "Timer",
    "coord_map",
    "draw",
    "get_solver",
    "has_nccl",
    "init_glog",
    "init_log",
    "install",
    "io",
    "layer_type_list",
    "layers",
    "log",
    "net_spec",
    "params",
    "proto",
    "set_device",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_multiprocess",
    "set_random_seed",
    "set_solver_count",
    "set_solver_rank",
    "solver_count",
    "solver_rank",
    "to_proto",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'caffe' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
