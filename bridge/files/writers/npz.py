"""NumPy archives that hold a whole model: arrays named by layer and role, and the texts ``__bridge__``."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from typing import IO

import numpy as np
from numpy.lib import format as npy

from bridge.files.atomic import pieces
from bridge.files.manifest import TEXTS, arrays, entries, manifest_texts
from bridge.schema import Blob, Net


def write(net: Net, stream: IO[bytes]) -> None:
    """Write an uncompressed ``.npz``; ``numpy.load`` reads it without ``allow_pickle``.

    Args:
        net: The net.
        stream: Where to; need not be seekable.

    Source: NumPy's ``numpy.lib.format``, version 1.0.
    """
    listed = list(entries(net))
    archive(stream, arrays(listed), manifest_texts(net, listed))


def archive(stream: IO[bytes], stored: Mapping[str, Blob], texts: Mapping[str, str]) -> None:
    """Write arrays and texts."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as file:
        for key, blob in {TEXTS: text_blob(texts), **stored}.items():
            # Without a date, equal nets make equal files.
            with file.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
                dtype = blob.dtype.newbyteorder("<").str
                header = {"descr": dtype, "fortran_order": False, "shape": blob.shape}
                npy.write_array_header_1_0(member, header)
                for piece in pieces(blob):
                    member.write(piece)


def text_blob(texts: Mapping[str, str]) -> Blob:
    """The texts as an array of bytes."""
    return Blob.of(np.frombuffer(json.dumps(texts).encode(), np.uint8))
