"""ONNX export with Caffe's numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy

if TYPE_CHECKING:
    from bridge.onnx_export.export import to_onnx as to_onnx
    from bridge.onnx_export.export import to_onnx_file as to_onnx_file
    from bridge.onnx_export.export import to_onnx_model as to_onnx_model
    from bridge.onnx_export.preprocess import Preprocess as Preprocess
else:
    __all__ = lazy(
        __name__,
        {
            "to_onnx": "bridge.onnx_export.export",
            "to_onnx_file": "bridge.onnx_export.export",
            "to_onnx_model": "bridge.onnx_export.export",
            "Preprocess": "bridge.onnx_export.preprocess",
        },
    )
