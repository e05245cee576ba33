"""The frozen trunk: the layers below all that is trained, computed once per image.

Its outputs are computed one image at a time on the CPU. A matrix product over a batch
may round an image's row differently in other company; alone, an image always gives the
same bits, so that training from a cache and without one see the very same numbers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridge import engines
from bridge.chain.back import from_chain
from bridge.chain.build import NetChain
from bridge.chain.functions import chainer
from bridge.errors import BridgeError, ModelError, UnsupportedLayerError, UsageError
from bridge.finetuning.cache import Features
from bridge.schema import Net, Shape

_to_cpu = chainer.backends.cuda.to_cpu
_THREADS = os.cpu_count() or 1


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
    return is_random(layer) or (_uses_batch(layer) and layer.name not in frozen)


def is_random(layer: Any) -> bool:
    """Whether the layer draws random numbers in training."""
    if layer.type == "Dropout":
        return bool(layer.dropout_ratio > 0)
    return bool(layer.type == "Pooling" and layer.pool == "STOCHASTIC")


def _uses_batch(layer: Any) -> bool:
    """Whether the layer normalises by the batch's own statistics in training."""
    if layer.type == "BatchNorm":
        return bool(layer.use_global_stats is not True)
    return bool(layer.type == "BN" and not layer.frozen and layer.bn_mode != "INFERENCE")


def _handed_on(net: Net, index: int) -> tuple[str, ...]:
    inputs = {top for layer in net.layers if layer.is_input for top in layer.tops}
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
    kept = tuple(layer for layer in layers if not layer.is_input or read.intersection(layer.tops))
    return net.replace(layers=kept)


class Trunk:
    """Computes what the trunk hands on, on the CPU image by image.

    Args:
        net: The net.
        chain: Its chain.
        cut: Where it is cut.
        data: The input blob that images are fed to.
        engine: ``auto``, ``chainer`` or ``onnxruntime``.
        sample: A few preprocessed images, for ``auto`` to compare engines with.

    Attributes:
        engine: The engine that was taken.
        note: How it was chosen.
    """

    def __init__(self, net: Net, chain: NetChain, cut: Cut, data: str, engine: str, sample: np.ndarray) -> None:
        self.cut, self._chain, self._data = cut, chain, data
        self._half = any(param.dtype == np.float16 for param in chain.params())
        self._alone = chain.device.xp is np
        self.engine, self._run = "chainer", self._chainer
        self.note = f"trunk of {cut.index} layers in chainer"
        if engine == "onnxruntime" or (
            engine == "auto" and self._alone and not self._half and engines.missing("onnxruntime") is None
        ):
            self._consider(net, engine, sample)

    def _consider(self, net: Net, wish: str, sample: np.ndarray) -> None:
        """Take ONNX Runtime if it was asked for, or if it is faster and agrees within 1e-5."""
        if problem := engines.missing("onnxruntime"):
            raise problem
        if not self._alone:
            raise UsageError("the trunk runs in onnxruntime on the CPU only", hint="leave out --trunk-engine")
        try:
            other = _OnnxTrunk(from_chain(self._chain, net), self.cut, self._data)
        except (ModelError, UnsupportedLayerError) as error:
            if wish == "onnxruntime":
                raise
            self.note += f", for onnxruntime cannot run it: {error.args[0]}"
            return
        mine, mine_s = _timed(self._chainer, sample)
        theirs, theirs_s = _timed(other, sample)
        off = max(_difference(theirs[blob], mine[blob]) for blob in self.cut.blobs)
        self.note = (
            f"trunk of {self.cut.index} layers: onnxruntime {theirs_s * 1e3:.2f} ms, chainer {mine_s * 1e3:.2f} ms "
            f"per image, largest difference {off:.1e}"
        )
        if wish == "onnxruntime" or (off <= 1e-5 and theirs_s < mine_s):
            self.engine, self._run = "onnxruntime", other
        self.note += f"; {self.engine} runs it"

    def __call__(self, x: np.ndarray) -> Features:
        """Features of preprocessed images (N, C, H, W) float32."""
        if not self._alone:
            return self._run(x)
        if self.engine == "onnxruntime" and len(x) > 1:
            with ThreadPoolExecutor(_THREADS) as pool:  # an image is a task; the runtime lets go of Python's lock
                rows = list(pool.map(self._run, (x[i : i + 1] for i in range(len(x)))))
        else:
            rows = [self._run(x[i : i + 1]) for i in range(len(x))]
        return {blob: np.concatenate([row[blob] for row in rows]) for blob in self.cut.blobs}

    def _chainer(self, x: np.ndarray) -> Features:
        fed = self._chain.xp.asarray(x, dtype=np.float16 if self._half else np.float32)
        with chainer.using_config("train", False), chainer.no_backprop_mode():
            values = self._chain.run({self._data: fed}, stop=self.cut.index)
        return {blob: values[blob].array for blob in self.cut.blobs}

    def to_host(self, x: np.ndarray) -> Features:
        """As calling it, but for features that are float32 arrays of NumPy in any case."""
        return {blob: np.asarray(_to_cpu(values), np.float32) for blob, values in self(x).items()}


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, relative to the larger of 1 and the largest value."""
    return float(np.abs(a - b).max(initial=0) / max(1.0, float(np.abs(b).max(initial=0))))


def _timed(run: Callable[[np.ndarray], Features], sample: np.ndarray) -> tuple[Features, float]:
    """Its features of the sample, and the seconds per image: the least of several, for others use the machine too."""
    run(sample[:1])  # the first run of a session allocates
    rows, seconds = [], float("inf")
    for _ in range(3):
        start = time.perf_counter()
        rows = [run(sample[i : i + 1]) for i in range(len(sample))]
        seconds = min(seconds, (time.perf_counter() - start) / len(sample))
    return {blob: np.concatenate([row[blob] for row in rows]) for blob in rows[0]}, seconds


class _OnnxTrunk:
    """The trunk as an exported model in ONNX Runtime, for one image."""

    def __init__(self, net: Net, cut: Cut, data: str) -> None:
        from bridge.engines.onnxruntime import Session
        from bridge.onnx_export import to_onnx_file

        prefix = trunk_net(net, cut.index)
        shape = prefix.inputs[data] or ()
        file, graph = to_onnx_file(prefix, inputs={data: [1, *shape[1:]]}, dynamic_batch=False)
        last: dict[str, str] = {}
        for layer, names in zip(prefix, graph.tops, strict=True):
            last.update(zip(layer.tops, names, strict=True))
        self._names = {blob: last[blob] for blob in cut.blobs}
        if not all(self._names.values()):
            raise UnsupportedLayerError("a blob that the trunk hands on has no value of its own in the model")
        shown = [name for name in self._names.values() if name not in graph.outputs]
        self._session, self._data = Session(file, shown, threads=1), data

    def __call__(self, x: np.ndarray) -> Features:
        made = self._session({self._data: x})
        return {blob: made[name] for blob, name in self._names.items()}
