"""Who computes a net's layers: ONNX Runtime, several layers at once, or Chainer, layer by layer."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bridge.caffe.layer import Node, TypedNode
from bridge.caffe.state import STATE
from bridge.caffe.wiring import Wiring
from bridge.errors import INSTALL_CHAINER, MissingExtraError, ModelError, UnsupportedLayerError

if TYPE_CHECKING:
    from bridge.caffe.engines.chainer import ChainerEngine
    from bridge.caffe.engines.onnx import OnnxEngine

_HINTS = {
    "chainer": INSTALL_CHAINER,
    "onnxruntime": "pip install 'weight-bridge[runtime]'",
}


class Engines:
    """The engines of one net.

    ONNX Runtime computes a run of layers in one go and hands out what is asked for. It serves nets in
    the phase TEST, until the net goes back through a layer for the first time. All else is Chainer's.

    Args:
        nodes: The net's layers.
        wiring: Their blobs.
        phase: ``TRAIN`` or ``TEST``.
        where: The net's file, for messages.
    """

    def __init__(self, nodes: Sequence[Node], wiring: Wiring, phase: str, where: str) -> None:
        self._nodes, self._wiring, self._phase, self._where = nodes, wiring, phase, where
        self._backward = phase == "TRAIN"
        self._refused: set[int] = set()
        self._onnx: OnnxEngine | None = None
        self._chainer: ChainerEngine | None = None

    def forward(self, start: int, end: int, *, alone: bool = False) -> None:
        """Run the layers ``start`` to ``end``.

        Args:
            start: The first layer.
            end: The last layer.
            alone: Whether each layer is run by a call of its own, so that there is nothing to fuse.

        Raises:
            MissingExtraError: Neither engine is installed, or only one that cannot run a layer.
        """
        index = start
        while index <= end:
            last = index
            fused = self._fused(index) and not (alone and _installed("chainer"))
            while fused and last < end and self._fused(last + 1):
                last += 1
            if not (fused and self._run_fused(index, last)):
                for each in range(index, last + 1):
                    self._run(each)
            index = last + 1

    def _fused(self, index: int) -> bool:
        """Whether ONNX Runtime computes a layer, together with its neighbours."""
        node = self._nodes[index]
        return (
            not self._backward
            and not STATE.gpu
            and isinstance(node, TypedNode)
            and not node.runs_here
            and index not in self._refused
            and node.typed.has_onnx
            and _installed("onnxruntime")
        )

    def _run_fused(self, start: int, end: int) -> bool:
        """Run layers in ONNX Runtime; returns whether it did."""
        for node in self._nodes[start : end + 1]:
            node.reshape()
        engine = self._onnx_engine()
        if engine.changing(start, end) and _installed("chainer"):
            return False
        try:
            engine.forward(start, end)
        except (UnsupportedLayerError, ModelError):  # Chainer can, or says better why not
            if not _installed("chainer"):
                raise
            self._refused.update(range(start, end + 1))
            return False
        return True

    def _run(self, index: int) -> None:
        node = self._nodes[index]
        node.reshape()
        if isinstance(node, TypedNode) and not node.runs_here:
            self._chainer_engine(node).forward(index, keep=self._backward)
        else:
            node.forward()

    def backward(self, index: int) -> None:
        """Go back through a layer.

        Raises:
            MissingExtraError: Chainer is not installed.
        """
        node = self._nodes[index]
        if not isinstance(node, TypedNode) or node.runs_here:
            node.backward()
            return
        engine = self._chainer_engine(node)
        if not self._backward:
            self._backward = True
            if self._onnx is not None:
                self._onnx.retrace(engine)
                self._onnx = None
        engine.backward(index)

    def _onnx_engine(self) -> OnnxEngine:
        if self._onnx is None:
            from bridge.caffe.engines.onnx import OnnxEngine

            self._onnx = OnnxEngine(self._nodes, self._wiring)
        return self._onnx

    def _chainer_engine(self, node: Node) -> ChainerEngine:
        if self._chainer is None:
            if not _installed("chainer"):
                raise MissingExtraError(self._why(node), where=f"{self._where}: {node.label}", hint=self._hint())
            from bridge.caffe.engines.chainer import ChainerEngine

            self._chainer = ChainerEngine(self._nodes, self._phase)
        return self._chainer

    def _why(self, node: Node) -> str:
        if not self._backward and not _installed("onnxruntime"):
            return "neither onnxruntime nor Chainer is installed"
        return "Chainer is not installed, which computes layers in training, their gradients, and losses"

    def _hint(self) -> str:
        return _HINTS["chainer" if self._backward or _installed("onnxruntime") else "onnxruntime"]


def _installed(package: str) -> bool:
    if package not in _FOUND:
        _FOUND[package] = importlib.util.find_spec(package) is not None
    return _FOUND[package]


_FOUND: dict[str, bool] = {}
