"""The formats that benchmarks/fuzz.py damages: small files of each, and damage that knows how they are built."""

from __future__ import annotations

import io
import json
import random
import re
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bridge  # noqa: E402
from bridge.caffe_files.prototxt import parse  # noqa: E402
from bridge.files.readers import read_mean  # noqa: E402
from bridge.verification.arrays import read_array  # noqa: E402
from bridge.verification.inputs import Recorded  # noqa: E402
from tests import encode  # noqa: E402

Damage = Callable[[random.Random, bytearray, list[bytes]], None]
EDGES = (0, 1, 2, 255, 256, 65535, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 10**30, -1)
"""Numbers that a reader may trip over."""


class Format(NamedTuple):
    """What is damaged, and what is done with the result.

    Attributes:
        suffix: Of its files.
        seeds: Makes the files that are damaged.
        use: Reads a file, and all that it holds.
        damages: Ways to damage it that keep its outer structure whole.
    """

    suffix: str
    seeds: Callable[[], list[bytes]]
    use: Callable[[Path], None]
    damages: tuple[Damage, ...] = ()


# -- what is done with a file ----------------------------------------------------------------------


def load(path: Path) -> None:
    for layer in bridge.load(path):
        for array in layer.blobs.values():
            array.copy()


def mean(path: Path) -> None:
    read_mean(path).numpy().copy()


def image(path: Path) -> None:
    read_array(path, "data", (1, 3, 8, 8))


def recording(path: Path) -> None:
    Recorded(path)


# -- models ----------------------------------------------------------------------------------------


def caffemodels() -> list[bytes]:
    """Small models: each generation with each encoding, and some that Caffe wrote."""
    shape = (2, 3, 2, 1)
    values = np.random.default_rng(0).standard_normal(shape)
    text = """name: "c" type: "Convolution" bottom: "data" top: "c" param { lr_mult: 1 decay_mult: 0.5 }
      convolution_param { num_output: 2 kernel_size: 2 pad: 1 weight_filler { type: "xavier" } }"""
    relu = parse('name: "r" type: "ReLU" bottom: "c" top: "c"')
    models = []
    for generation in ("V0", "V1", "V2"):
        for style in encode.VALUES:
            for form in ("shape", "legacy"):
                blobs = [encode.blob(values, style, form), encode.blob(values[0, 0], style, diff=True)]
                rest = parse('name: "n" input: "data" input_dim: 1 input_dim: 3 input_dim: 4 input_dim: 4')
                models.append(encode.net([(parse(text), blobs), (relu, [])], generation, rest))
    golden = (ROOT / "fixtures" / "golden").glob("*/weights.caffemodel")
    return models + [data for data in (path.read_bytes() for path in sorted(golden)) if len(data) < 4000]


def saved(suffix: str) -> Callable[[], list[bytes]]:
    """The small golden models in another format."""

    def seeds() -> list[bytes]:
        files = []
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / f"net{suffix}"
            for case in sorted((ROOT / "fixtures" / "golden").glob("*/weights.caffemodel")):
                if case.stat().st_size > 4000 or len(files) == 12:
                    continue
                net = bridge.load(case.with_name("deploy.prototxt"), case)
                try:
                    _save(net, target)
                except bridge.BridgeError:
                    continue
                files.append(target.read_bytes())
        return [*files, *_more(suffix)]

    return seeds


def _save(net: bridge.Net, target: Path) -> None:
    if target.suffix == ".onnx":
        bridge.export_onnx(net, target, check=False)
    else:
        bridge.save(net, target)


def _more(suffix: str) -> list[bytes]:
    """Files as other tools write them."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    stream = io.BytesIO()
    if suffix == ".npz":
        np.savez_compressed(stream, **{"ip/0": values, "ip/1": values[0], "n": np.arange(3)})
        return [stream.getvalue()]
    if suffix == ".h5":
        import h5py

        with h5py.File(stream, "w") as file:
            file.create_dataset("data/ip/0", data=values, chunks=(1, 3), compression="gzip", shuffle=True)
            file.create_dataset("data/ip/1", data=values[0], chunks=(2,), fletcher32=True)
            file.create_dataset("data/a/b/0", data=values.astype(">f8"))
            file.create_group("data/relu")
        return [stream.getvalue()]
    return []


def means() -> list[bytes]:
    values = np.random.default_rng(0).standard_normal((1, 3, 4, 4))
    return [encode.blob(values, style, form) for style in encode.VALUES for form in ("shape", "legacy")]


def images() -> list[bytes]:
    from PIL import Image, features

    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
    made = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "PPM", "TGA", "ICO", "WEBP", "PCX", "SGI", "DDS", "MSP", "EPS"):
        stream = io.BytesIO()
        if kind == "WEBP" and not features.check("webp"):
            continue
        picture = Image.fromarray(pixels)
        (picture.convert("1") if kind == "MSP" else picture).save(stream, kind)
        made.append(stream.getvalue())
    return made


def recordings() -> list[bytes]:
    made = []
    rng = np.random.default_rng(0)
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        arrays = {"in:data": rng.standard_normal((1, 3, 2)), "out:prob": np.arange(3), "blob:a": np.float16([[1]])}
        save(stream, **arrays)
        made.append(stream.getvalue())
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, 3), np.float32))
    return [*made, stream.getvalue()]


# -- damage that keeps the outer structure ---------------------------------------------------------


def text_number(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    """Another number where one stands in text: a shape, an offset, an index."""
    numbers = list(re.finditer(rb"(?<![0-9.])[0-9]{1,9}(?![0-9.])", bytes(data[:100_000])))
    if numbers:
        place = rng.choice(numbers)
        data[place.start() : place.end()] = str(rng.choice(EDGES)).encode()


def text_word(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    """Another value of JSON or of Python where a word or number stands."""
    words = list(re.finditer(rb"[A-Za-z0-9_./-]{1,40}", bytes(data[:100_000])))
    if words:
        place = rng.choice(words)
        other = [
            b"null",
            b"[]",
            b"{}",
            b"1e400",
            b"true",
            b'"\\ud800"',
            b"\\u0000",
            b"[[[[",
            b"<f4",
            b"|O",
            b"-0.0",
            b"",
        ]
        data[place.start() : place.end()] = rng.choice(other)


def in_member(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    """Damage inside a member of a ZIP archive, whose sizes and checksums are right again afterwards."""
    try:
        with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
            members = {info.filename: bytearray(archive.read(info)) for info in archive.infolist()}
    except (zipfile.BadZipFile, EOFError, ValueError, OSError, NotImplementedError, RuntimeError, zlib.error):
        return
    if not members:
        return
    name = rng.choice(sorted(members))
    rng.choice([text_number, text_word, flip])(rng, members[name], models)
    if rng.random() < 0.1:
        members[rng.choice(["a/b.npy", "x" * 60000, "ip/999999999.npy", "é.npy", ".npy"])] = members.pop(name)
    stream = io.BytesIO()
    try:
        with zipfile.ZipFile(stream, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            for key, body in members.items():
                archive.writestr(key, bytes(body))
    except (ValueError, zipfile.LargeZipFile):
        return
    data[:] = stream.getvalue()


def header_of_safetensors(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    """Damage in the header, whose length is right again afterwards."""
    size = int.from_bytes(data[:8], "little")
    if 8 + size > len(data):
        return
    header = bytearray(data[8 : 8 + size])
    rng.choice([text_number, text_word])(rng, header, models)
    if rng.random() < 0.2:
        try:
            listed = json.loads(header)
            listed[rng.choice(sorted(listed))] = rng.choice([[], {}, None, 1, {"dtype": "F32", "shape": [0] * 70}])
            header = bytearray(json.dumps(listed).encode())
        except (ValueError, RecursionError, AttributeError, TypeError, IndexError):
            pass
    data[: 8 + size] = len(header).to_bytes(8, "little") + header


def in_field(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    """Damage inside a field of a protocol buffers message, all lengths around which are right again afterwards."""
    data[:] = _in_message(rng, bytes(data), 0)


def _in_message(rng: random.Random, data: bytes, depth: int) -> bytes:
    fields, at = [], 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        if tag & 7 == 2:
            length, body = _varint(data, at)
            at = body + length
            fields.append((start, body, at, tag))
        else:
            at = _varint(data, at)[1] if tag & 7 == 0 else at + {1: 8, 5: 4}.get(tag & 7, len(data))
            fields.append((start, start, at, tag))
        if at > len(data):
            return _bytes(rng, data)
    if not fields:
        return _bytes(rng, data)
    start, body, end, tag = rng.choice(fields)
    if tag & 7 == 2:
        inner = (
            _in_message(rng, data[body:end], depth + 1)
            if rng.random() < 0.8 and depth < 8
            else _bytes(rng, data[body:end])
        )
        new = encode.varint(tag) + encode.varint(len(inner)) + inner
    elif tag & 7 == 0:
        new = encode.varint(tag) + encode.varint(rng.choice(EDGES) & (1 << 64) - 1)
    else:
        new = _bytes(rng, data[start:end])
    action = rng.random()
    new = new * 2 if action < 0.05 else b"" if action < 0.1 else new
    return data[:start] + new + data[end:]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at
    return value, len(data) + 1


def _bytes(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    rng.choice([flip, text_number, text_word, cut])(rng, changed, [])
    return bytes(changed)


def number32(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    """Another little-endian number of 2, 4 or 8 bytes: what HDF5, ZIP and images are full of."""
    width = rng.choice([2, 4, 8])
    if len(data) > width:
        at = rng.randrange(len(data) - width)
        value = rng.choice(
            [*EDGES, rng.getrandbits(8), int.from_bytes(data[at : at + width], "little") + rng.choice([-1, 1])]
        )
        data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")


def flip(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(rng: random.Random, data: bytearray, models: list[bytes]) -> None:
    if data:
        del data[rng.randrange(len(data)) :]


FORMATS = {
    "caffemodel": Format(".caffemodel", caffemodels, load, (in_field,)),
    "hdf5": Format(".h5", saved(".h5"), load, (number32,)),
    "npz": Format(".npz", saved(".npz"), load, (in_member, in_member, number32)),
    "safetensors": Format(".safetensors", saved(".safetensors"), load, (header_of_safetensors,)),
    "onnx": Format(".onnx", saved(".onnx"), load, (in_field, in_field, text_number)),
    "binaryproto": Format(".binaryproto", means, mean, (in_field,)),
    "image": Format(".png", images, image, (number32, text_number)),
    "recording": Format(".npz", recordings, recording, (in_member, in_member, number32)),
}
"""Name -> format."""
