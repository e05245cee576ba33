"""Which versions took part in a verification."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import sys

import bridge

_PACKAGES = {
    "numpy": "numpy",
    "google.protobuf": "protobuf",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "chainer": "chainer",
    "h5py": "h5py",
    "cv2": "opencv-python-headless",
}
"""Module -> the distribution that it comes with."""


def versions() -> dict[str, str]:
    """Name -> version, of Python, this package, and each package that has been used so far."""
    found = {"weight-bridge": bridge.__version__, "python": platform.python_version()}
    for module, distribution in _PACKAGES.items():
        if module in sys.modules:
            found[distribution] = _version(module, distribution)
    return found


@functools.cache
def _version(module: str, distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules[module], "__version__", "unknown"))
