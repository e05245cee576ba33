"""Runs of layers in ONNX Runtime, fused; values in between are computed when they are read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from bridge.caffe.blob import Blob
from bridge.caffe.engines.faster import quicken
from bridge.caffe.layer import Node, TypedNode
from bridge.caffe.memory import Memory, ParamMemory
from bridge.caffe.wiring import Wiring
from bridge.engines.onnxruntime import RuntimeSession
from bridge.layers.input import Input
from bridge.layers.split import Split
from bridge.onnx_export.graph import lower
from bridge.onnx_export.model import DEFAULT_OPSET, to_file
from bridge.schema import Blob as Stored
from bridge.schema import Blobs, Layer, Net, Shape, count

if TYPE_CHECKING:
    from bridge.caffe.engines.chainer import ChainerEngine

_RESTLESS = 3
"""After so many passes in a row, each with other parameters, no more sessions are made until they stay."""
_KEPT = 4
"""So many sessions of a segment are kept."""


class OnnxEngine:
    """Computes runs of layers.

    Args:
        nodes: The net's layers.
        wiring: Their blobs.
    """

    def __init__(self, nodes: Sequence[Node], wiring: Wiring) -> None:
        self._nodes, self._wiring = nodes, wiring
        self._segments: dict[tuple[int, int], _Segment] = {}

    def forward(self, start: int, end: int) -> None:
        """Run the layers ``start`` to ``end``, all of them of types that ONNX can express.

        Raises:
            UnsupportedLayerError: ONNX, or this version of the runtime, cannot express one of them as it is.
            ModelError: The shapes do not fit together.
        """
        self._segment(start, end).run()

    def changing(self, start: int, end: int) -> bool:
        """Whether the layers' parameters changed before each of the last passes, so that sessions do not pay."""
        return self._segment(start, end).changing()

    def _segment(self, start: int, end: int) -> _Segment:
        if (start, end) not in self._segments:
            nodes = [node for node in self._nodes[start : end + 1] if isinstance(node, TypedNode)]
            self._segments[start, end] = _Segment(nodes)
        return self._segments[start, end]

    def retrace(self, engine: ChainerEngine) -> None:
        """Have the layers that ran last run again in Chainer, which keeps what the way back needs."""
        for (start, end), segment in sorted(self._segments.items()):
            segment.restore()
            for index in range(start, end + 1):
                engine.forward(index, keep=True)
        for node in self._nodes:
            for blob in node.layer.blobs:
                if isinstance(blob.data_memory, ParamMemory):
                    blob.data_memory.release()


class _Key(NamedTuple):
    """What a session was made for: the parameters' versions, the inputs' shapes, the outputs."""

    versions: tuple[int, ...]
    shapes: tuple[Shape, ...]
    wanted: frozenset[str]


class _Param(NamedTuple):
    """A parameter as it was when a run began: its blob may have another memory and shape since."""

    memory: Memory
    array: np.ndarray
    shape: Shape

    @classmethod
    def of(cls, blob: Blob) -> _Param:
        """The parameter in a blob, whose memory was synced."""
        memory = cast(ParamMemory, blob.data_memory)
        return cls(memory, memory.synced((memory.size,)), blob.dims)


class _Segment:
    """Some layers in a row, and the sessions that run them.

    Args:
        nodes: The layers.
    """

    def __init__(self, nodes: Sequence[TypedNode]) -> None:
        self.nodes = nodes
        self.blobs: dict[str, Blob] = {}
        self.inputs: list[str] = []
        self.written: dict[str, None] = {}
        for node in nodes:
            self.blobs.update(zip(node.typed.bottoms, node.bottoms, strict=True))
            self.blobs.update(zip(node.typed.tops, node.tops, strict=True))
            self.inputs += [name for name in node.typed.bottoms if name not in (*self.written, *self.inputs)]
            self.written.update(dict.fromkeys(node.typed.tops))
        self.outputs = frozenset(Net("", tuple(node.typed for node in nodes)).outputs)
        self.eager = any(node.typed.data_dependent for node in nodes)
        self._sessions: dict[_Key, _Compiled] = {}
        self.last: _Run | None = None
        self._versions: tuple[int, ...] = ()
        self._changes = 0

    @property
    def params(self) -> list[ParamMemory]:
        """The parameters' memory as it is now: another net may share its own at any time."""
        memories = [blob.data_memory for node in self.nodes for blob in node.layer.blobs]
        return [memory for memory in memories if isinstance(memory, ParamMemory)]

    def changing(self) -> bool:
        """Whether the parameters changed before each of the last passes."""
        versions = tuple(memory.sync() for memory in self.params)
        self._changes = self._changes + 1 if self._versions not in ((), versions) else 0
        self._versions = versions
        return self._changes >= _RESTLESS

    def run(self) -> None:
        """Compute the outputs, and let everything else be computed later."""
        wanted = self.outputs | (self.written.keys() if self.eager else self._looked_at())
        run = _Run(self, {name: self.blobs[name].peek() for name in self.inputs})
        values = run.compute(wanted)
        later = self.written.keys() - values.keys()
        run.keep([name for name in self.inputs if later or name in self.written])
        for name, array in values.items():
            self.blobs[name].set_shape(array.shape)
            self.blobs[name].data_memory.put(array)
            self.blobs[name].data_memory.read = False
        for name in later:
            self.blobs[name].data_memory.later(run)
        self.last = run

    def _looked_at(self) -> set[str]:
        """The values that somebody read after the last run, or has an array of."""
        memories = {name: self.blobs[name].data_memory for name in self.written}
        return {name for name, memory in memories.items() if memory.read or memory.held()}

    def restore(self) -> None:
        """Give the inputs that the layers wrote over the values that they had."""
        for name, array in (self.last.inputs if self.last else {}).items():
            if name in self.written:
                self.blobs[name].values()[...] = array

    def session(self, key: _Key, params: Sequence[Sequence[_Param]]) -> _Compiled:
        """The session for some outputs, inputs' shapes and parameters."""
        made = self._sessions.pop(key, None)
        if made is None:
            made = self._compile(key, params)
            old = [other for other in self._sessions if other.versions != key.versions]
            for other in old or [*self._sessions][: max(0, len(self._sessions) - _KEPT + 1)]:
                del self._sessions[other]
        self._sessions[key] = made
        return made

    def _compile(self, key: _Key, params: Sequence[Sequence[_Param]]) -> _Compiled:
        stored: dict[int, Stored] = {}
        layers: list[Layer] = [
            Input(name="", type="", tops=(name,), shapes=(shape,))
            for name, shape in zip(self.inputs, key.shapes, strict=True)
        ]
        layers += [_with_blobs(node, own, stored) for node, own in zip(self.nodes, params, strict=True)]
        kept = {f"{name}/read": name for name in key.wanted if name not in self.outputs}
        layers += [Split(name="", type="", bottoms=(name,), tops=(own,)) for own, name in kept.items()]
        graph = lower(Net("", tuple(layers)), opset=DEFAULT_OPSET, dynamic_batch=False)
        quicken(graph)
        names = {output: graph.blobs.get(output, output) for output in graph.outputs}
        names = {output: kept.get(name, name) for output, name in names.items()}
        file = to_file(graph, name="", metadata={})
        return _Compiled(
            RuntimeSession(file, threads=int(os.environ.get("OMP_NUM_THREADS") or 0), repeated=True), names
        )


class _Compiled:
    """A session, and the blob that each of its outputs is."""

    def __init__(self, session: RuntimeSession, names: dict[str, str]) -> None:
        self.session, self.names = session, names

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {self.names[output]: array for output, array in self.session(inputs).items()}


class _Run:
    """One run of a segment: its inputs and parameters, from which any value in between follows.

    Args:
        segment: The segment.
        inputs: The values of its inputs.
    """

    def __init__(self, segment: _Segment, inputs: dict[str, np.ndarray]) -> None:
        self._segment, self.inputs = segment, inputs
        self._versions = tuple(memory.sync() for memory in segment.params)
        self._params = [[_Param.of(blob) for blob in node.layer.blobs] for node in segment.nodes]
        self._asked = False

    def keep(self, names: Collection[str]) -> None:
        """Keep copies of some inputs, and no others."""
        self.inputs = {name: self.inputs[name].copy() for name in names}

    def compute(self, wanted: Collection[str]) -> dict[str, np.ndarray]:
        """Some values by the blobs' names."""
        if not wanted:
            return {}
        shapes = tuple(array.shape for array in self.inputs.values())
        key = _Key(self._versions, shapes, frozenset(wanted))
        return self._segment.session(key, self._params)(self.inputs)

    def fill(self, memory: Memory) -> None:
        """Compute what a blob holds; from the second blob on, all of them."""
        blobs = self._segment.blobs
        pending = {name: blobs[name] for name in self._segment.written if blobs[name].data_memory.pending is self}
        asked = {name for name, blob in pending.items() if blob.data_memory is memory}
        values = self.compute(self._segment.outputs | (pending.keys() if self._asked else asked))
        self._asked = True
        for name in pending.keys() & values.keys():
            pending[name].data_memory.put(values[name])


def _with_blobs(node: TypedNode, params: Sequence[_Param], stored: dict[int, Stored]) -> Layer:
    """The layer with its parameters as blobs; shared ones have one origin."""
    blobs = {}
    for role, param in zip(node.roles, params, strict=True):
        size = count(param.shape)
        origin = stored.setdefault(id(param.memory), Stored.of(param.array))
        blobs[role] = origin.reshaped(param.shape) if param.array.size == size else Stored.of(param.array[:size])
    return dataclasses.replace(node.typed, blobs=Blobs(blobs))
