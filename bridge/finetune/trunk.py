"""The frozen trunk: the layers below all that is trained, computed once per image.

Its outputs are computed one image at a time on the CPU. A matrix product over a batch
may round an image's row differently in other company; alone, an image always gives the
same bits, so that training from a cache and without one see the very same numbers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bridge import engines
from bridge.chain.build import NetChain
from bridge.chain.functions import chainer
from bridge.errors import BridgeError
from bridge.schema import Net, Shape

Features = dict[str, np.ndarray]
"""Blob name -> (N, ...) float32."""


@dataclass(frozen=True)
class Cut:
    """Where a net is cut: layers before ``index`` are the trunk, ``blobs`` is what they hand on."""

    index: int
    blobs: tuple[str, ...]


def find_cut(net: Net, data: str, trained: Iterable[str], frozen: Iterable[str]) -> Cut | None:
    """The cut below the lowest layer that is trained, random, or dependent on the batch.

    Args:
        net: The net to train.
        data: The input blob that images are fed to.
        trained: Names of layers with trained parameters.
        frozen: Names of layers whose statistics are kept.

    Returns:
        The cut, or ``None`` where there is nothing below it, or where the trunk mixes images.
    """
    moving, kept = set(trained), set(frozen)
    index = next(
        (i for i, layer in enumerate(net.layers) if layer.name in moving or _unsteady(layer, kept)), len(net.layers)
    )
    blobs = _handed_on(net, index)
    if not blobs or data in blobs or not _imagewise(net, index, data, blobs):
        return None
    return Cut(index, blobs)


def _unsteady(layer: Any, frozen: set[str]) -> bool:
    """Whether the layer's result in training is random or depends on the rest of the batch."""
    if layer.type == "Dropout":
        return bool(layer.dropout_ratio > 0)
    return layer.type == "BatchNorm" and layer.use_global_stats is not True and layer.name not in frozen


def _handed_on(net: Net, index: int) -> tuple[str, ...]:
    inputs = {top for layer in net.layers if hasattr(layer, "input_shapes") for top in layer.tops}
    written = {top for layer in net.layers[:index] for top in layer.tops}
    read: dict[str, None] = {}
    rewritten: set[str] = set()
    for layer in net.layers[index:]:
        read.update(dict.fromkeys(bottom for bottom in layer.bottoms if bottom not in rewritten))
        rewritten.update(layer.tops)
    computed = written - inputs
    return tuple(blob for blob in read if blob in computed) if computed else ()


def _imagewise(net: Net, index: int, data: str, blobs: Sequence[str]) -> bool:
    """Whether the trunk needs nothing but images, and gives a row per image."""
    prefix = trunk_net(net, index)
    if set(prefix.inputs) != {data}:
        return False
    try:
        counts = []
        for size in (1, 3):
            shapes = dict(net.inputs)
            own = shapes[data]
            if own is None:
                return False
            made = _final_shapes(prefix, {data: (size, *own[1:])})
            counts.append([made[blob][0] for blob in blobs])
    except (BridgeError, IndexError):
        return False
    return counts == [[1] * len(blobs), [3] * len(blobs)]


def _final_shapes(net: Net, inputs: dict[str, Shape]) -> dict[str, Shape]:
    made: dict[str, Shape] = {}
    for layer, tops in zip(net.layers, net.infer(inputs), strict=True):
        made.update(zip(layer.tops, tops, strict=False))
    return made


def trunk_net(net: Net, index: int) -> Net:
    """The layers before ``index`` as a net, without inputs that they do not read."""
    layers = net.layers[:index]
    read = {bottom for layer in layers for bottom in layer.bottoms}
    kept = tuple(layer for layer in layers if not hasattr(layer, "input_shapes") or read.intersection(layer.tops))
    return net.replace(layers=kept)


class Trunk:
    """Computes what the trunk hands on, image by image.

    Attributes:
        engine: ``chainer`` or ``onnxruntime``.
        note: How the engine was chosen.
    """

    def __init__(self, net: Net, chain: NetChain, cut: Cut, data: str, engine: str = "auto", sample: Any = None) -> None:
        self.cut, self._chain, self._data = cut, chain, data
        self.note = ""
        run: Callable[[np.ndarray], Features] = self._chainer
        self.engine = "chainer"
        on_cpu = chain.device.xp is np
        if engine != "chainer" and on_cpu and engines.missing("onnxruntime") is None:
            other = _OnnxTrunk(net, cut, data)
            if engine == "onnxruntime" or self._faster(other, sample):
                run, self.engine = other, "onnxruntime"
        self._run = run
        self._alone = on_cpu

    def __call__(self, x: np.ndarray) -> Features:
        """Features of preprocessed images (N, C, H, W) float32."""
        if not self._alone:
            return self._run(x)
        if self.engine == "onnxruntime" and len(x) > 8:
            with ThreadPoolExecutor(2) as pool:  # each image is one task; the runtime lets go of Python's lock
                rows = list(pool.map(self._run, (x[i : i + 1] for i in range(len(x)))))
        else:
            rows = [self._run(x[i : i + 1]) for i in range(len(x))]
        return {blob: np.concatenate([row[blob] for row in rows]) for blob in self.cut.blobs}

    def _chainer(self, x: np.ndarray) -> Features:
        with chainer.using_config("train", False), chainer.no_backprop_mode():
            values = self._chain.run({self._data: self._chain.xp.asarray(x)}, stop=self.cut.index)
        return {blob: values[blob].array for blob in self.cut.blobs}

    def _faster(self, other: Callable[[np.ndarray], Features], sample: np.ndarray) -> bool:
        """Whether the other engine is faster on the sample; it must agree within 1e-5 as well."""
        mine, mine_s = _timed(self._chainer, sample)
        theirs, theirs_s = _timed(other, sample)
        off = max(_difference(theirs[blob], mine[blob]) for blob in self.cut.blobs)
        self.note = (
            f"trunk of {self.cut.index} layers: onnxruntime {theirs_s * 1e3:.2f} ms, chainer {mine_s * 1e3:.2f} ms "
            f"per image, largest difference {off:.1e}"
        )
        return off <= 1e-5 and theirs_s < 1.2 * mine_s  # a tie is not left to the noise of the clock


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, relative to the larger of 1 and the largest value."""
    return float(np.abs(a - b).max(initial=0) / max(1.0, float(np.abs(b).max(initial=0))))


def _timed(run: Callable[[np.ndarray], Features], sample: np.ndarray) -> tuple[Features, float]:
    run(sample[:1])  # the first run of a session allocates
    start = time.perf_counter()
    rows = [run(sample[i : i + 1]) for i in range(len(sample))]
    seconds = (time.perf_counter() - start) / len(sample)
    return {blob: np.concatenate([row[blob] for row in rows]) for blob in rows[0]}, seconds


class _OnnxTrunk:
    """The trunk as an exported model in ONNX Runtime, for one image."""

    def __init__(self, net: Net, cut: Cut, data: str) -> None:
        import onnxruntime as ort

        from bridge.onnx_export import to_onnx_model

        prefix = trunk_net(net, cut.index)
        shape = prefix.inputs[data] or ()
        model, _ = to_onnx_model(prefix, inputs={data: [1, *shape[1:]]}, dynamic_batch=False, every_top=True)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._blobs, self._data = list(cut.blobs), data

    def __call__(self, x: np.ndarray) -> Features:
        return dict(zip(self._blobs, self._session.run(self._blobs, {self._data: x}), strict=True))


def digest(net: Net, cut: Cut, *parts: str) -> str:
    """A key for a trunk's outputs: its layers, its weights, and what else they depend on."""
    made = hashlib.sha256()
    for layer in net.layers[: cut.index]:
        made.update(repr((layer.type, layer.bottoms, layer.tops, layer.definition)).encode())
        for role, blob in layer.blobs.entries():
            made.update(repr((role, blob.shape, str(blob.dtype))).encode())
            made.update(np.ascontiguousarray(blob.numpy()))
    made.update(repr((cut, parts)).encode())
    return made.hexdigest()


class Cache:
    """Features of every image and draw, in memory or, when larger, in files.

    Args:
        folder: Where files go; they are named by the key and reused by a run with the same.
        key: :func:`digest` of all that the features depend on.
        blobs: Names of the blobs.
        rows: Number of images times draws.
        memory: Most bytes to keep in memory.
    """

    def __init__(self, folder: Path, key: str, blobs: Sequence[str], rows: int, memory: int) -> None:
        self._folder, self._rows, self._memory = folder, rows, memory
        self._paths = {blob: folder / f"{key}.{index}.npy" for index, blob in enumerate(blobs)}
        self._arrays: Features = {}
        self.place = "memory"
        self.reused = False

    def load(self) -> bool:
        """Take the features of an earlier run from their files, if they are there."""
        if not all(path.exists() for path in self._paths.values()):
            return False
        self._arrays = {
            blob: np.load(path, mmap_mode="r", allow_pickle=False) for blob, path in self._paths.items()
        }
        self.place, self.reused = str(self._folder), True
        return True

    def fill(self, batches: Iterable[Features]) -> None:
        """Store the features, given in order."""
        start = 0
        for features in batches:
            if not self._arrays:
                self._allocate(features)
            for blob, values in features.items():
                self._arrays[blob][start : start + len(values)] = values
            start += len(next(iter(features.values())))
        if self.place != "memory":
            for blob, path in self._paths.items():
                self._arrays[blob].flush()  # type: ignore[attr-defined]
                path.with_suffix(".part").rename(path)

    def _allocate(self, features: Features) -> None:
        per_row = sum(values[0].nbytes for values in features.values())
        shapes = {blob: (self._rows, *values.shape[1:]) for blob, values in features.items()}
        if per_row * self._rows <= self._memory:
            self._arrays = {blob: np.empty(shape, np.float32) for blob, shape in shapes.items()}
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self.place = str(self._folder)
        self._arrays = {
            blob: np.lib.format.open_memmap(self._paths[blob].with_suffix(".part"), "w+", np.float32, shape)
            for blob, shape in shapes.items()
        }

    def rows(self, indices: np.ndarray) -> Features:
        """The features at these rows."""
        return {blob: np.asarray(values[indices]) for blob, values in self._arrays.items()}


__all__ = ["Cache", "Cut", "Trunk", "digest", "find_cut", "trunk_net"]
