"""What benchmarks/fuzz.py damages besides models: solver states, and what data layers read."""

from __future__ import annotations

import io
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.fuzz_formats import Format, images, in_field, number32, text_number, text_word  # noqa: E402
from bridge.caffe_files.assemble import assemble  # noqa: E402
from bridge.caffe_files.prototxt import parse  # noqa: E402
from bridge.errors import FormatError, ModelError  # noqa: E402
from bridge.files.solver_state import SolverState, read_solver_state, write_solver_state  # noqa: E402
from bridge.layers.base import CaffeLayer  # noqa: E402
from bridge.schema import Blob  # noqa: E402
from bridge.sources import source_of  # noqa: E402
from bridge.sources.pictures import read_picture  # noqa: E402
from tests.sources import datum, png, write_leveldb, write_lmdb  # noqa: E402

# -- what is done with a file ----------------------------------------------------------------------


def solver_state(path: Path) -> None:
    for blob in read_solver_state(path).history:
        blob.numpy().copy()


def picture(path: Path) -> None:
    for channels in (1, 3, None):
        read_picture(path, channels)


def layer(text: str) -> Callable[[Path], None]:
    """Reads two batches of a data layer; ``FILE`` in its text stands for the file, ``LIST`` for a list of it alone."""

    def use(path: Path) -> None:
        listed = path.with_name("list.txt")
        listed.write_text(f"{path} 1\n" if "ImageData" in text else f"{path}\n")
        read_layer(text.replace("FILE", str(path)).replace("LIST", str(listed)))

    return use


def read_layer(text: str) -> None:
    """Two batches; what the layer itself refuses, such as pictures of several sizes, is a damaged file here."""
    made = assemble(None, parse(text), phase="TEST").layers[0]
    source = source_of(made)
    if source is None or not isinstance(made, CaffeLayer):
        raise AssertionError(f"{made} reads no data")
    try:
        source.setup(made, "TEST")
        for _ in range(2):
            source.next_batch()
    except ModelError as error:
        raise FormatError(error.text) from None


def folder(path: Path) -> None:
    """A LevelDB, whose files stand one behind the other."""
    with tempfile.TemporaryDirectory() as made:
        for name, data in unpacked(path.read_bytes()).items():
            Path(made, name).write_bytes(data)
        read_layer(DATABASE.replace("LMDB", "LEVELDB").replace("FILE", made))


def packed(files: dict[str, bytes]) -> bytes:
    """Files one behind the other: 20 bytes of name, 4 of size, and the content."""
    return b"".join(
        name.encode().ljust(20) + len(data).to_bytes(4, "little") + data for name, data in sorted(files.items())
    )


def unpacked(data: bytes) -> dict[str, bytes]:
    """The files; damaged heads give odd files, not errors."""
    files, at = {}, 0
    while at + 24 <= len(data):
        name = data[at : at + 20].decode("ascii", "replace").strip()
        size = int.from_bytes(data[at + 20 : at + 24], "little")
        files["".join(char if char.isalnum() or char in "-." else "-" for char in name)] = data[
            at + 24 : at + 24 + size
        ]
        at += 24 + size
    return {name: content for name, content in files.items() if name.strip(".")}


DATABASE = 'layer { type: "Data" top: "x" top: "y" data_param { source: "FILE" batch_size: 4 backend: LMDB } }'
ROWS = 'layer { type: "HDF5Data" top: "x" top: "y" hdf5_data_param { source: "LIST" batch_size: 4 } }'
WINDOWS = """layer { type: "WindowData" top: "x" top: "y" window_data_param { source: "FILE" batch_size: 4
  fg_fraction: 0.5 context_pad: 1 crop_mode: "square" } transform_param { crop_size: 8 } }"""

# -- the files ---------------------------------------------------------------------------------------


def solver_states(suffix: str, hdf5: bool) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        rng, made = np.random.default_rng(0), []
        for count in (0, 1, 4):
            history = tuple(Blob.of(np.float32(rng.standard_normal((2, 3, 1, index + 1)))) for index in range(count))
            with tempfile.TemporaryDirectory() as place:
                path = Path(place, f"s{suffix}")
                write_solver_state(path, SolverState(100, "net.caffemodel", 2, history), hdf5=hdf5)
                made.append(path.read_bytes())
        return made

    return seeds


def _entries() -> list[list[bytes]]:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (3, 5, 4), np.uint8) for _ in range(6)]
    large = [datum(rng.integers(0, 256, (3, 40, 40), np.uint8), 1) for _ in range(3)]
    floats = [datum(None, label, floats=x.astype(np.float32)) for label, x in enumerate(pixels)]
    coded = [datum(None, 1, encoded=png(np.ascontiguousarray(x.transpose(1, 2, 0)))) for x in pixels]
    return [[datum(x, label) for label, x in enumerate(pixels)], floats, coded, large, pixels_of_many(rng)]


def pixels_of_many(rng: np.random.Generator) -> list[bytes]:
    """So many entries that the tree has two levels."""
    return [datum(rng.integers(0, 256, (1, 2, 2), np.uint8), label) for label in range(150)]


def lmdbs() -> list[bytes]:
    made = []
    for values in _entries():
        with tempfile.TemporaryDirectory() as place:
            write_lmdb(Path(place), values)
            made.append(Path(place, "data.mdb").read_bytes())
    return made


def leveldbs() -> list[bytes]:
    made = []
    for again, values in enumerate(_entries()):
        with tempfile.TemporaryDirectory() as place:
            write_leveldb(Path(place, "db"), values)
            if again % 2:  # opened again, what was written last goes into a table
                write_leveldb(Path(place, "db"), values[:1])
            made.append(packed({path.name: path.read_bytes() for path in Path(place, "db").iterdir()}))
    return made


def tables() -> list[bytes]:
    import h5py

    made, rng = [], np.random.default_rng(0)
    for options in ({}, {"chunks": True, "compression": "gzip"}, {"chunks": True, "fletcher32": True}):
        stream = io.BytesIO()
        with h5py.File(stream, "w") as file:
            file.create_dataset("x", data=rng.standard_normal((6, 2, 3)).astype(np.float32), **options)
            file.create_dataset("y", data=np.arange(6))
        made.append(stream.getvalue())
    return made


def windows() -> list[bytes]:
    path = Path(tempfile.gettempdir()) / "fuzz-window.png"
    path.write_bytes(png(np.random.default_rng(0).integers(0, 256, (16, 18, 3), np.uint8)))
    boxes = "1 0.8 2 3 11 9\n0 0.1 0 0 17 15\n2 0.7 9 6 17 15\n0 0.2 5 1 8 14\n"
    return [f"# {index}\n{path}\n3\n16\n18\n4\n{boxes}".encode() for index in range(2)]


# -- damage ------------------------------------------------------------------------------------------


def in_head(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    """Another number in the first bytes of a page of 4096."""
    at = 4096 * rng.randrange(max(1, len(data) // 4096)) + 2 * rng.randrange(80)
    width = rng.choice([2, 4, 8])
    if at + width <= len(data):
        value = rng.choice([0, 1, 2, 4, 15, 4095, 65535, 1 << 31, (1 << 64) - 1, rng.getrandbits(12)])
        data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")


FORMATS = {
    "solverstate": Format(".solverstate", solver_states(".solverstate", False), solver_state, (in_field,)),
    "solverstate-hdf5": Format(".solverstate.h5", solver_states(".solverstate.h5", True), solver_state, (number32,)),
    "lmdb": Format(".mdb", lmdbs, layer(DATABASE), (in_head, in_head, number32)),
    "leveldb": Format(".bin", leveldbs, folder, (number32,)),
    "hdf5-data": Format(".h5", tables, layer(ROWS), (number32,)),
    "picture": Format(".png", images, picture, (number32, text_number)),
    "windows": Format(".txt", windows, layer(WINDOWS), (text_number, text_word)),
}
"""Name -> format."""
