"""ONNX export with Caffe's numbers."""

from __future__ import annotations

from bridge.onnx_export.export import to_onnx_file, to_onnx_model

__all__ = ["to_onnx_file", "to_onnx_model"]
