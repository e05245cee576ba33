"""Nets from a few lines of prototxt, with random blobs of the shapes that their layers ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.onnx_export import to_onnx_model
from bridge.schema import Blob, Net, Opaque, RawLayer, RawNet

Draw = Callable[[np.random.Generator, str, Any], np.ndarray]
"""Values for a blob of a role and a shape."""


def positive(rng: np.random.Generator, role: str, shape: Any) -> np.ndarray:
    """Values from 0.2 to 1, whatever the role."""
    return rng.uniform(0.2, 1, shape)


def make(text: str, *, seed: int = 0, phase: str = "TEST", draw: Draw = positive) -> Net:
    """The net with blobs; layers that share a parameter by name share it."""
    definition = prototxt.parse(text)
    bare = assemble(None, definition, phase=phase)
    rng = np.random.default_rng(seed)
    known: dict[str, Any] = {name: shape for name, shape in bare.inputs.items() if shape is not None}
    stored = []
    for layer, tops in zip(bare.layers, bare.infer(), strict=True):
        known_type = not isinstance(layer, Opaque)
        wanted = layer.blob_shapes(*(known[bottom] for bottom in layer.bottoms)) if known_type else {}
        blobs = tuple(Blob.of(np.float32(draw(rng, role, shape))) for role, shape in wanted.items())
        stored.append(RawLayer(layer.name, layer.type, layer.definition, blobs))
        known.update(zip(layer.tops, tops, strict=False))
    raw = RawNet("made", tuple(layer for layer in stored if layer.blobs), source="made.caffemodel", reader="test")
    return assemble(raw, definition, phase=phase)


def random_inputs(net: Net, seed: int = 1) -> dict[str, np.ndarray]:
    """Standard normal float32 for each input."""
    rng = np.random.default_rng(seed)
    shapes = {name: shape for name, shape in net.inputs.items() if shape is not None}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


class Session:
    """A net, exported and loaded into ONNX Runtime, to be run at several shapes."""

    def __init__(self, net: Net, **options: Any) -> None:
        import onnx
        import onnxruntime as ort

        self.model, self.graph = to_onnx_model(net, **options)
        onnx.checker.check_model(self.model, full_check=True)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 3
        self._session = ort.InferenceSession(
            self.model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        names = [value.name for value in self._session.get_outputs()]
        fed = {value.name: np.asarray(inputs[value.name], np.float32) for value in self._session.get_inputs()}
        return dict(zip(names, self._session.run(names, fed), strict=True))

    def shapes(self) -> dict[str, Sequence[int | str]]:
        """The extents of inputs and outputs as the model tells them."""
        return {value.name: value.shape for value in (*self._session.get_inputs(), *self._session.get_outputs())}

    def named(self) -> set[str]:
        """The names of all values that nodes write."""
        return {name for node in self.model.graph.node for name in node.output}
