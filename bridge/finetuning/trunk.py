"""The frozen trunk of a net, computed image by image.

On the CPU an image is computed alone, because a matrix product over a batch may round an image's
row differently in other company. So training from the cache has the bits of training without one.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from bridge import engines
from bridge.chain.back import from_chain
from bridge.chain.build import NetChain
from bridge.chain.devices import to_host
from bridge.chain.functions import chainer
from bridge.errors import ModelError, UnsupportedLayerError, UsageError
from bridge.finetuning import blas
from bridge.finetuning.cache import Features
from bridge.finetuning.cut import Cut, trunk_net
from bridge.schema import Net

TRUNK_ENGINES = ("chainer", "onnxruntime")
_CLOSE = 1e-5
"""The largest difference from Chainer's features, relative to the largest of them and 1, with which ``auto`` takes
ONNX Runtime."""
_THREADS = os.cpu_count() or 1
"""Images that are computed at a time; each is computed by one thread, so this decides about no value."""


@dataclass(frozen=True)
class Choice:
    """The engine of a trunk; :func:`choose` makes it before the first step.

    Attributes:
        engine: ``chainer`` or ``onnxruntime``.
        note: How it was chosen, for the user.
        onnx: The trunk in ONNX Runtime, where that is the engine.
    """

    engine: str
    note: str
    onnx: OnnxTrunk | None = None


def choose(net: Net, chain: NetChain, cut: Cut, data: str, wish: str, sample: np.ndarray) -> Choice:
    """Choose the engine that computes the trunk.

    ``auto`` takes ONNX Runtime if it is installed, the run is on the CPU in float32, ONNX Runtime can run the trunk,
    and its features of the sample differ from Chainer's by at most 1e-5; else Chainer. So the choice follows from the
    net, the data and what is installed.

    Args:
        net: The net.
        chain: Its chain.
        cut: Where the trunk ends.
        data: The input blob of images.
        wish: ``auto``, ``chainer`` or ``onnxruntime``.
        sample: Preprocessed images (N, C, H, W) float32.

    Raises:
        MissingExtraError: ``onnxruntime`` was asked for and is not installed.
        UsageError: It was asked for and the run is on a GPU.
        UnsupportedLayerError: It was asked for and cannot run the trunk.
    """
    title = f"trunk of {cut.index} of {len(net)} layers"
    if wish == "chainer" or (wish == "auto" and (_in_float16(chain) or not _on_cpu(chain))):
        return Choice("chainer", f"{title} in chainer")
    if problem := engines.missing("onnxruntime"):
        if wish == "onnxruntime":
            raise problem
        return Choice("chainer", f"{title} in chainer; with onnxruntime installed it may be faster")
    if not _on_cpu(chain):
        raise UsageError("the trunk runs in onnxruntime on the CPU only", hint="leave out --trunk-engine")
    try:
        onnx = OnnxTrunk(from_chain(chain, net), cut, data)
    except (ModelError, UnsupportedLayerError) as error:
        if wish == "onnxruntime":
            raise
        return Choice("chainer", f"{title} in chainer, because onnxruntime cannot run it: {error.args[0]}")
    difference = _difference(onnx, Trunk(chain, cut, data), sample)
    found = f"the engines differ by at most {difference:.1e}"
    if wish == "auto" and not difference <= _CLOSE:
        return Choice("chainer", f"{title} in chainer; {found}, more than {_CLOSE:.0e}")
    return Choice("onnxruntime", f"{title} in onnxruntime; {found}", onnx)


def _on_cpu(chain: NetChain) -> bool:
    return chain.device.xp is np


def _in_float16(chain: NetChain) -> bool:
    return any(param.dtype == np.float16 for param in chain.params())


def _difference(onnx: OnnxTrunk, own: Trunk, sample: np.ndarray) -> float:
    """The largest difference between features, relative to the larger of 1 and the largest value."""
    worst = 0.0
    for x in np.split(sample, len(sample)):
        theirs, mine = onnx(x), own(x)
        for blob, values in mine.items():
            scale = max(1.0, float(np.abs(values).max(initial=0)))
            off = float(np.abs(theirs[blob] - values).max(initial=0)) / scale
            worst = max(worst, off if off == off else float("inf"))
    return worst


def software(engine: str) -> str:
    """What computes with an engine, with all that decides about the last place of a value.

    For example ``onnxruntime 1.20.0`` or ``chainer 7.8.1, numpy 2.2.0, openblas 0.3.28 Haswell``.
    """
    if engine == "onnxruntime":
        from bridge.engines.onnxruntime import runtime

        return f"onnxruntime {runtime().__version__}"
    return f"chainer {chainer.__version__}, numpy {np.__version__}, {blas.loaded() or 'unknown BLAS'}"


class Trunk:
    """Computes the blobs that the trunk hands on, on the CPU image by image.

    Args:
        chain: The net's chain.
        cut: Where the trunk ends.
        data: The input blob of images.
        onnx: The trunk in ONNX Runtime; ``None`` computes it in Chainer.

    Attributes:
        alone: Whether each image is computed on its own.
    """

    def __init__(self, chain: NetChain, cut: Cut, data: str, onnx: OnnxTrunk | None = None) -> None:
        self.cut, self._chain, self._data, self._onnx = cut, chain, data, onnx
        self._dtype = np.float16 if _in_float16(chain) else np.float32
        self.alone = _on_cpu(chain)

    def __call__(self, x: np.ndarray) -> Features:
        """Features of preprocessed images (N, C, H, W) float32."""
        if not self.alone:
            return self._chainer(x)
        images = [x[i : i + 1] for i in range(len(x))]
        if self._onnx is None:
            rows = list(map(self._chainer, images))
        elif len(images) == 1:
            rows = [self._onnx(images[0])]
        else:
            run = self._onnx
            shares = [images[len(images) * i // _THREADS : len(images) * (i + 1) // _THREADS] for i in range(_THREADS)]
            with ThreadPoolExecutor(_THREADS) as pool:  # the runtime computes without Python's lock
                rows = [row for share in pool.map(lambda of: [run(x) for x in of], shares) for row in share]
        return {blob: np.concatenate([row[blob] for row in rows]) for blob in self.cut.blobs}

    def _chainer(self, x: np.ndarray) -> Features:
        with chainer.using_config("train", False), chainer.no_backprop_mode():
            values = self._chain.run({self._data: self._chain.xp.asarray(x, self._dtype)}, stop=self.cut.index)
        return {blob: values[blob].array for blob in self.cut.blobs}

    def to_host(self, x: np.ndarray) -> Features:
        """The features as float32 arrays of NumPy."""
        return {blob: np.asarray(to_host(values), np.float32) for blob, values in self(x).items()}


class OnnxTrunk:
    """The trunk as an exported model in ONNX Runtime, for one image.

    Raises:
        UnsupportedLayerError: The model has no value for a blob that the trunk hands on.
    """

    def __init__(self, net: Net, cut: Cut, data: str) -> None:
        from bridge.engines.onnxruntime import RuntimeSession
        from bridge.onnx_export import to_onnx_file

        prefix = trunk_net(net, cut.index)
        shape = prefix.inputs[data] or ()
        file, graph = to_onnx_file(prefix, inputs={data: [1, *shape[1:]]}, dynamic_batch=False)
        last = prefix.flow.last
        self._names = {blob: graph.tops[last[blob].layer][last[blob].top] for blob in cut.blobs}
        if not all(self._names.values()):
            raise UnsupportedLayerError("a blob that the trunk hands on has no value of its own in the model")
        shown = [name for name in self._names.values() if name not in graph.outputs]
        self._session, self._data = RuntimeSession(file, shown, threads=1, repeated=True), data

    def __call__(self, x: np.ndarray) -> Features:
        """Features of one image (1, C, H, W) float32."""
        made = self._session({self._data: x})
        return {blob: made[name] for blob, name in self._names.items()}
