"""ONNX operators whose names are also names of Caffe's layer types, such as Flatten.

A member equals the operator's name: ``node.op_type == Op.Flatten``.
"""

from __future__ import annotations

from enum import Enum, auto


class Op(str, Enum):
    """ONNX's operators of the default domain that the clean-up of a graph asks for by name."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[str]) -> str:
        return name

    ArgMax = auto()
    Concat = auto()
    Flatten = auto()
    Reshape = auto()
    Slice = auto()
    Split = auto()
    Transpose = auto()
