"""What CuPy needs beside itself: CUDA's libraries, also those that pip installed, and cuDNN."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

_LIBRARIES = ("nvJitLink", "nvrtc", "cudart", "cublasLt", "cublas", "cusparse", "cusolver", "curand", "cufft")
"""Each after those that it needs."""


def preload() -> list[str]:
    """Load CUDA's libraries from the packages ``nvidia-...`` that pip installed, where the system has none.

    CuPy 13 looks for them in the system's folders alone; CuPy 14 finds them by itself. A library that is loaded serves
    every module that asks for it by its name.

    Returns:
        The names of the libraries that were loaded; none where there is no driver.
    """
    if sys.platform == "win32" or not _loads("libcuda.so.1"):
        return []
    found = []
    for name in _LIBRARIES:
        for path in sorted(path for folder in _folders() for path in folder.glob(f"lib{name}.so.*")):
            if not _loads(path.name) and _loads(str(path)):
                found.append(path.name)
    return found


def _folders() -> list[Path]:
    """The folders of libraries in the packages ``nvidia-...``."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec is not None else None
    return [folder for root in roots or () for folder in sorted(Path(root).glob("*/lib"))]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def load_cudnn() -> ModuleType:
    """CuPy's functions for cuDNN, without CuPy's warnings that they have another name now, or that there are none.

    Raises:
        ImportError: This CuPy has none, or cuDNN is not installed.
    """
    quiet("cupy.cuda.cudnn")
    return quiet("cupy.cudnn")


def quiet(module: str) -> ModuleType:
    """A module of CuPy, imported without its warnings.

    Raises:
        ImportError: There is none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)
