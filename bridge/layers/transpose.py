"""Transpose: the axes in another order, as the forks for CRNN have it."""

from __future__ import annotations

from typing import Any

from bridge.layers.base import Params, layer_type
from bridge.layers.permute import Permute
from bridge.schema import Shape


@layer_type("Transpose")
class Transpose(Permute):
    """Axis ``i`` of the top is axis ``dim[i]`` of the bottom; every axis is named.

    Source: caffe.proto ``TransposeParameter``, transpose_layer.cpp of senlinuc/caffe_ocr; ONNX ``Transpose``.
    """

    in_place = False
    message = "transpose_param"

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        return {"order": p.read("dim", tuple[int, ...], ())}

    def axes(self, rank: int) -> Shape:
        if len(self.order) != rank:
            raise self.fail(f"has {len(self.order)} dim", expected=f"one for each of the input's {rank} axes")
        return super().axes(rank)
