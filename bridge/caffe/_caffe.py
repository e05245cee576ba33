"""The names of pycaffe's compiled part, for scripts that look for them there: ``caffe._caffe.BlobVec``."""

from __future__ import annotations

from typing import Any

from bridge.caffe.blob import Blob, BlobVec

__all__ = ["Blob", "BlobVec"]


def __getattr__(name: str) -> Any:
    import bridge.caffe

    return getattr(bridge.caffe, name)
