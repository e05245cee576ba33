"""Small programs of Caffe that scripts call: ``python -m bridge.caffe convert_imageset ...`` and its like.

Each takes the flags and arguments of the program of the same name.

Source: tools/convert_imageset.cpp, compute_image_mean.cpp, extract_features.cpp, upgrade_*.cpp, caffe.cpp.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bridge.caffe import state
from bridge.caffe.io import array_to_blobproto, array_to_datum
from bridge.caffe.proto import caffe_pb2
from bridge.caffe.state import log
from bridge.errors import MissingExtraError, ModelError, OutputError, UsageError
from bridge.extras import pip
from bridge.schema import times

_MAP_SIZE = 1 << 40
_COMMIT = 1000
"""Entries that are written at a time. Source: convert_imageset.cpp."""

SWITCHES = ("gray", "shuffle", "check_size", "encoded")
"""Flags that may stand without a value."""

Write = Callable[[bytes, bytes], None]


@contextlib.contextmanager
def new_database(path: Path, backend: str) -> Iterator[Write]:
    """A new database; gives a function that writes a key and a value.

    Raises:
        OutputError: Something of that name is there, or it cannot be made.
        MissingExtraError: The package that writes it is not installed.
    """
    if path.exists():
        raise OutputError("exists", expected="a new database", where=str(path))
    name = {"lmdb": "lmdb", "leveldb": "plyvel"}.get(backend)
    if name is None:
        raise UsageError(f"--backend is '{backend}'", expected="lmdb or leveldb")
    try:
        package: Any = __import__(name)
    except ImportError:
        raise MissingExtraError(f"package {name} is not installed", where=str(path), hint=pip("data")) from None
    try:
        opened = (
            package.open(str(path), map_size=_MAP_SIZE)
            if name == "lmdb"
            else package.DB(str(path), create_if_missing=True)
        )
    except (package.Error, OSError) as error:
        raise OutputError(f"cannot be made: {error}", where=str(path)) from None
    pending: list[tuple[bytes, bytes]] = []

    def flush() -> None:
        with opened.begin(write=True) if name == "lmdb" else opened.write_batch() as batch:
            for key, value in pending:
                batch.put(key, value)
        pending.clear()

    def write(key: bytes, value: bytes) -> None:
        pending.append((key, value))
        if len(pending) >= _COMMIT:
            flush()

    with contextlib.closing(opened):
        yield write
        flush()


def _convert_imageset(flags: argparse.Namespace) -> None:
    from bridge.sources.image_list import lines
    from bridge.sources.pictures import read_picture, resize

    if flags.encoded or flags.encode_type:
        raise UsageError("--encoded is not available", hint="leave it out; the database then holds pixels")
    entries = lines(Path(flags.listfile))
    if flags.shuffle:
        log("Shuffling data", "convert_imageset.cpp")
        state.STATE.rng.shuffle(entries)
    log(f"A total of {len(entries)} images.", "convert_imageset.cpp")
    size: int | None = None
    with new_database(Path(flags.db), flags.backend) as write:
        for number, (name, label) in enumerate(entries):
            image = read_picture(Path(flags.root + name), 1 if flags.gray else 3)
            if flags.resize_height and flags.resize_width:
                image = resize(image, flags.resize_height, flags.resize_width)
            size = size or image.size
            if flags.check_size and image.size != size:
                raise ModelError(f"is {times(image.shape)}, {image.size} values, the first one has {size}", where=name)
            write(f"{number:08d}_{name}".encode(), array_to_datum(image, label).SerializeToString())
            if (number + 1) % _COMMIT == 0:
                log(f"Processed {number + 1} files.", "convert_imageset.cpp")
    if len(entries) % _COMMIT:
        log(f"Processed {len(entries)} files.", "convert_imageset.cpp")


def _compute_image_mean(flags: argparse.Namespace) -> None:
    from bridge.sources.database import database

    total: np.ndarray | None = None
    count = 0
    for datum in database(Path(flags.db), flags.backend.upper()).entries():
        image = datum.image(None)
        total = np.zeros(image.shape) if total is None else total
        if image.shape != total.shape:
            raise ModelError(f"is {times(image.shape)}, the first one is {times(total.shape)}", where=datum.where)
        total += image
        count += 1
    if total is None:
        raise ModelError("is empty", where=flags.db)
    log(f"Processed {count} files.", "compute_image_mean.cpp")
    mean = total / count
    if flags.output:
        blob = array_to_blobproto(mean.astype(np.float32))
        blob.ClearField("shape")
        blob.num, blob.channels, blob.height, blob.width = 1, *mean.shape
        log(f"Write to {flags.output}", "compute_image_mean.cpp")
        _written(flags.output, blob.SerializeToString())
    log(f"Number of channels: {len(mean)}", "compute_image_mean.cpp")
    for number, channel in enumerate(mean):
        log(f"mean_value channel [{number}]: {channel.mean():g}", "compute_image_mean.cpp")


def _extract_features(flags: argparse.Namespace) -> None:
    from bridge.caffe.net import Net

    if flags.device != "CPU":
        state.set_device(int(flags.device_id.rpartition("=")[2]))
        state.set_mode_gpu()
    net = Net(flags.proto, 1, weights=flags.weights)
    names, places = flags.blobs.split(","), flags.databases.split(",")
    if len(names) != len(places):
        raise UsageError(f"{len(names)} blobs and {len(places)} data sets", expected="as many of both")
    net._known(set(names))
    with contextlib.ExitStack() as stack:
        writes = [stack.enter_context(new_database(Path(place), flags.backend)) for place in places]
        numbers = [0] * len(names)
        for _ in range(flags.batches):
            net.forward()
            for place, name in enumerate(names):
                for row in net.blobs[name].data:
                    datum = caffe_pb2.Datum(channels=1, height=1, width=1)
                    datum.channels, datum.height, datum.width = (*row.shape, 1, 1, 1)[:3]
                    datum.float_data.extend(row.reshape(-1).tolist())
                    writes[place](f"{numbers[place]:010d}".encode(), datum.SerializeToString())
                    numbers[place] += 1
    for name, number in zip(names, numbers, strict=True):
        log(f"Extracted features of {number} query images for feature blob {name}", "extract_features.cpp")


def _upgrade_net_text(flags: argparse.Namespace) -> None:
    from bridge.caffe_files import prototxt
    from bridge.caffe_files.upgrade import upgrade_net

    net, layers = upgrade_net(prototxt.parse_file(flags.input))
    net.set("layer", *layers)
    _written(flags.output, prototxt.format(net).encode())


def _upgrade_net_binary(flags: argparse.Namespace) -> None:
    from bridge.files import writers
    from bridge.files.load import load

    writers.save(load(flags.input), flags.output, "caffemodel")


def _upgrade_solver_text(flags: argparse.Namespace) -> None:
    from bridge.caffe.solver_param import SolverSettings

    settings = SolverSettings.read(flags.input)
    _written(flags.output, str(settings.param).encode())


def _device_query(flags: argparse.Namespace) -> None:
    from bridge.chain.devices import cuda_devices, cuda_problem, gpu_hint, name_and_memory

    if problem := cuda_problem():
        raise MissingExtraError(f"cannot use GPU: {problem}", hint=gpu_hint())
    chosen = range(cuda_devices()) if flags.gpu in ("", "all") else [int(number) for number in flags.gpu.split(",")]
    for number in chosen:
        name, memory = name_and_memory(number)
        log(f"Querying GPUs {number}", "caffe.cpp")
        for title, value in (("Device id", number), ("Name", name), ("Total global memory", memory)):
            log(f"{title + ':':<31}{value}", "common.cpp")


def _written(path: str, content: bytes) -> None:
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=path) from None


def add_parsers(commands: Any) -> None:
    """Add the programs to a command's subparsers."""
    images = _parser(commands, "convert_imageset", "images of a list into a database", "root", "listfile", "db")
    for flag in SWITCHES:
        images.add_argument(f"--{flag}", type=_truth, default=False)
    for flag in ("resize_width", "resize_height"):
        images.add_argument(f"--{flag}", type=int, default=0)
    images.add_argument("--encode_type", default="")
    mean = _parser(commands, "compute_image_mean", "the mean of a database's images", "db")
    mean.add_argument("output", nargs="?", default="")
    for parser in (images, mean):
        parser.add_argument("--backend", default="lmdb")
    features = _parser(
        commands, "extract_features", "blobs of a net into databases", "weights", "proto", "blobs", "databases"
    )
    features.add_argument("batches", type=int)
    features.add_argument("backend")
    features.add_argument("device", nargs="?", default="CPU")
    features.add_argument("device_id", nargs="?", default="0")
    for name in ("upgrade_net_proto_text", "upgrade_net_proto_binary", "upgrade_solver_proto_text"):
        _parser(commands, name, "a file of an old version into the present form", "input", "output")
    _parser(commands, "device_query", "what GPUs there are").add_argument("--gpu", default="")


def _parser(commands: Any, name: str, help: str, *arguments: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    for argument in arguments:
        parser.add_argument(argument)
    return parser


def _truth(word: str) -> bool:
    """A value of a gflags flag: ``--gray=true``."""
    return word.lower() in ("true", "t", "yes", "y", "1")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "convert_imageset": _convert_imageset,
    "compute_image_mean": _compute_image_mean,
    "extract_features": _extract_features,
    "upgrade_net_proto_text": _upgrade_net_text,
    "upgrade_net_proto_binary": _upgrade_net_binary,
    "upgrade_solver_proto_text": _upgrade_solver_text,
    "device_query": _device_query,
}
"""The programs by name."""
