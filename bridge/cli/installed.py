"""Which packages are installed of those that the tool can use."""

from __future__ import annotations

import importlib.metadata

DISTRIBUTIONS = (
    "click", "numpy", "protobuf", "onnx", "rich", "onnxruntime", "chainer", "cupy", "cupy-cuda12x", "h5py",
    "safetensors", "pillow", "matplotlib", "lmdb", "mpi4py", "opencv-python", "opencv-python-headless", "openvino",
)  # fmt: skip


def installed() -> dict[str, str]:
    """Name -> version of those that are installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
