"""The two tables of ``onnx.mapping`` that onnx_chainer uses.

Source: onnx.proto ``TensorProto.DataType``, whose numbers never change.
"""

from __future__ import annotations

import numpy as np

NP_TYPE_TO_TENSOR_TYPE: dict[np.dtype, int] = {
    np.dtype(name): number
    for name, number in {
        "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "object": 8, "bool": 9,
        "float16": 10, "float64": 11, "uint32": 12, "uint64": 13, "complex64": 14, "complex128": 15,
    }.items()
}  # fmt: skip
"""NumPy's type -> number of the type in ONNX."""

STORAGE_TENSOR_TYPE_TO_FIELD: dict[int, str] = {
    1: "float_data",
    2: "int32_data",
    4: "int32_data",
    6: "int32_data",
    7: "int64_data",
    8: "string_data",
    9: "int32_data",
    11: "double_data",
    12: "uint64_data",
    13: "uint64_data",
}
"""Number of a type -> field of a tensor that holds its values one by one; other types lie in ``raw_data``."""
