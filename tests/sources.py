"""Files for data layers, the layers that read them, and what the real Caffe makes of them.

``python -m tests.sources PYTHON`` records anew, where PYTHON has the real Caffe.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tests.conftest import FIXTURES

RECORDED = FIXTURES / "sources.npz"
SEED, BATCHES = 1701, 3

DB = 'data_param { source: "%s" batch_size: 3 backend: %s }'
LIST = 'image_data_param { source: "list.txt" batch_size: 3 root_folder: "pics/" %s }'
WINDOWS = 'window_data_param { source: "windows.txt" batch_size: 6 fg_fraction: 0.5 root_folder: "pics/" %s }'
SQUARE = WINDOWS % 'context_pad: 2 crop_mode: "square"'
TOPS = 'top: "data" top: "label"'

CASES: dict[str, str] = {
    "lmdb": f'type: "Data" {TOPS} {DB % ("u8.lmdb", "LMDB")} transform_param {{ scale: 0.5 mean_value: 7 }}',
    "leveldb": f'type: "Data" {TOPS} {DB % ("u8.leveldb", "LEVELDB")}',
    "floats": f'type: "Data" {TOPS} {DB % ("floats.lmdb", "LMDB")} transform_param {{ scale: 0.25 mean_value: 1 }}',
    "encoded": f'type: "Data" {TOPS} {DB % ("encoded.lmdb", "LMDB")}',
    "encoded_grey": f'type: "Data" {TOPS} {DB % ("encoded.lmdb", "LMDB")} transform_param {{ force_gray: true }}',
    "crop_test": f'type: "Data" {TOPS} {DB % ("u8.lmdb", "LMDB")} transform_param {{ crop_size: 5 '
    'mean_value: 1 mean_value: 2 mean_value: 3 mirror: true }',
    "crop_train": f'type: "Data" {TOPS} {DB % ("u8.lmdb", "LMDB")} transform_param {{ crop_size: 5 '
    'mean_file: "mean.binaryproto" mirror: true scale: 0.1 }',
    "images": f'type: "ImageData" {TOPS} {LIST % "new_height: 11 new_width: 7"}',
    "images_halved": f'type: "ImageData" {TOPS} {LIST % "new_height: 8 new_width: 9 shuffle: true"}',
    "images_grey": f'type: "ImageData" {TOPS} {LIST % "is_color: false shuffle: true rand_skip: 3"}'
    " transform_param { crop_size: 9 mirror: true }",
    "windows": f'type: "WindowData" {TOPS} {WINDOWS % ""} transform_param {{ crop_size: 10 mirror: true '
    'mean_value: 5 }',
    "windows_square": f'type: "WindowData" {TOPS} {SQUARE} transform_param {{ crop_size: 12 mirror: true }}',
    "hdf5": 'type: "HDF5Data" top: "x" top: "y" hdf5_data_param { source: "h5.txt" batch_size: 4 }',
    "hdf5_shuffled": 'type: "HDF5Data" top: "x" top: "y" hdf5_data_param { source: "h5.txt" batch_size: 4 '
    'shuffle: true }',
    "hdf5_one": 'type: "HDF5Data" top: "x" hdf5_data_param { source: "h5one.txt" batch_size: 4 shuffle: true }',
}  # fmt: skip
TRAINING = {"crop_train", "images_halved", "images_grey"}

WORKER = """
import os, sys, json
os.environ["GLOG_minloglevel"] = "3"
import numpy as np, caffe
out = {}
for name, path, phase in json.load(sys.stdin):
    caffe.set_random_seed(%d)
    net = caffe.Net(path, phase)
    for batch in range(%d):
        net.forward()
        for top, blob in net.blobs.items():
            out["%%s/%%d/%%s" %% (name, batch, top)] = blob.data.copy()
np.savez_compressed(sys.argv[1], **out)
"""


def prototxt(name: str) -> str:
    return f'layer {{ name: "{name}" {CASES[name]} }}'


def recorded_by(python: str, folder: Path, names: Iterable[str] = CASES) -> dict[str, np.ndarray]:
    """What the Caffe of that interpreter reads from the files in the folder."""
    import json

    jobs = []
    for name in names:
        (folder / f"{name}.prototxt").write_text(prototxt(name))
        jobs.append((name, f"{name}.prototxt", 0 if name in TRAINING else 1))
    code = WORKER % (SEED, BATCHES)
    subprocess.run([python, "-c", code, "found.npz"], input=json.dumps(jobs), cwd=folder, check=True, text=True)
    with np.load(folder / "found.npz") as found:
        return dict(found)


# -- the files -------------------------------------------------------------------------------------


def varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def datum(image: np.ndarray | None, label: int, *, floats: np.ndarray | None = None, encoded: bytes = b"") -> bytes:
    """A serialized ``Datum``."""
    shape = (image if image is not None else floats if floats is not None else np.zeros((0, 0, 0))).shape
    made = b"".join(bytes([8 * (i + 1)]) + varint(n) for i, n in enumerate(shape) if not encoded)
    data = encoded or (image.tobytes() if image is not None else b"")
    if data:
        made += b"\x22" + varint(len(data)) + data
    made += b"\x28" + varint(label)
    if floats is not None:
        made += b"".join(b"\x35" + value.tobytes() for value in floats.astype("<f4").reshape(-1))
    return made + (b"\x38\x01" if encoded else b"")


def png(image: np.ndarray) -> bytes:
    """The file of a picture, (H, W, 3) or (H, W), red first."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def write_lmdb(path: Path, values: list[bytes]) -> None:
    import lmdb

    with lmdb.open(str(path), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for index, value in enumerate(values):
            transaction.put(b"%08d" % index, value)


def write_leveldb(path: Path, values: list[bytes]) -> None:
    import plyvel

    database = plyvel.DB(str(path), create_if_missing=True)
    for index, value in enumerate(values):
        database.put(b"%08d" % index, value)
    database.close()


def write_inputs(folder: Path) -> None:
    """All files that the cases read."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, 8, 9), np.uint8) for _ in range(7)]
    values = [datum(image, 10 * label) for label, image in enumerate(images)]
    write_lmdb(folder / "u8.lmdb", values)
    write_leveldb(folder / "u8.leveldb", values)
    floats = [rng.standard_normal((2, 3, 4)).astype(np.float32) for _ in range(5)]
    write_lmdb(folder / "floats.lmdb", [datum(None, label, floats=x) for label, x in enumerate(floats)])
    write_lmdb(folder / "encoded.lmdb", [
        datum(None, label, encoded=png(np.ascontiguousarray(x.transpose(1, 2, 0)))) for label, x in enumerate(images)
    ])  # fmt: skip
    mean = rng.uniform(0, 255, (3, 8, 9)).astype("<f4")
    head = b"".join(bytes([8 * (i + 1)]) + varint(n) for i, n in enumerate((1, 3, 8, 9)))
    (folder / "mean.binaryproto").write_bytes(head + b"\x2a" + varint(mean.nbytes) + mean.tobytes())
    write_pictures(folder, rng)
    write_hdf5(folder, rng)


def write_pictures(folder: Path, rng: np.random.Generator) -> None:
    (folder / "pics").mkdir()
    lines, windows = [], []
    for index in range(7):
        smooth = np.kron(rng.integers(0, 256, (4, 6, 3), np.uint8), np.ones((4, 3, 1), np.uint8))
        (folder / "pics" / f"a {index}.png").write_bytes(png(smooth))
        (folder / "pics" / f"w{index}.png").write_bytes(png(smooth))
        lines.append(f"a {index}.png {index * 3}")
        boxes = [
            (1 + index % 3, 0.8, 2, 3, 11, 9),
            (0, 0.1, 0, 0, 17, 15),
            (2, 0.7, 9, 6, 17, 15),
            (0, 0.2, 5, 1, 8, 14),
        ]
        windows.append(f"# {index}\nw{index}.png\n3\n16\n18\n{len(boxes)}\n")
        windows += [" ".join(map(str, box)) + "\n" for box in boxes]
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    (folder / "windows.txt").write_text("".join(windows))


def write_hdf5(folder: Path, rng: np.random.Generator) -> None:
    import h5py

    for name, rows in (("a.h5", 5), ("b.h5", 3), ("c.h5", 6)):
        with h5py.File(folder / name, "w") as file:
            file["x"] = rng.standard_normal((rows, 2, 3)).astype(np.float32)
            file["y"] = rng.integers(0, 9, rows).astype(np.float32)
    (folder / "h5.txt").write_text("a.h5\nb.h5\nc.h5\n")
    (folder / "h5one.txt").write_text("c.h5\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        write_inputs(Path(made))
        np.savez_compressed(RECORDED, **recorded_by(sys.argv[1], Path(made)))
