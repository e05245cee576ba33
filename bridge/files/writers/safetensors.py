"""safetensors files that hold a whole model: arrays named by layer and role, and texts.

The format is a header of JSON and the arrays behind it. It is written here rather than
by the library, whose functions want every array in memory, so that a model of any size
streams from its file into the new one.
"""

from __future__ import annotations

import json
from typing import IO, Any

import numpy as np

from bridge.files.atomic import pieces
from bridge.files.manifest import arrays, entries, manifest_texts
from bridge.schema import Net

DTYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
"""dtype of a blob -> the format's name for it."""


def write(net: Net, stream: IO[bytes]) -> None:
    """Write a ``.safetensors`` file.

    Args:
        net: The net.
        stream: Where to; need not be seekable.

    Source: the safetensors format, https://github.com/huggingface/safetensors#format.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    listed = list(entries(net))
    stored = arrays(listed)
    header: dict[str, Any] = {"__metadata__": manifest_texts(net, listed)}
    end = 0
    for key, blob in stored.items():
        start, end = end, end + blob.nbytes
        header[key] = {
            "dtype": names[blob.dtype.newbyteorder("<")], "shape": blob.shape, "data_offsets": [start, end]
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # the format wants the data to begin at a multiple of 8
    stream.write(len(text).to_bytes(8, "little") + text)
    for blob in stored.values():
        for piece in pieces(blob):
            stream.write(piece)
