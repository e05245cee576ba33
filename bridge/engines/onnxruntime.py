"""The engine ONNX Runtime: runs the model that the exporter makes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge.engines import Arrays, Tops
from bridge.errors import ModelError, UnsupportedLayerError
from bridge.onnx_export import to_onnx_file
from bridge.onnx_export.file import OnnxFile
from bridge.onnx_export.graph import Graph
from bridge.schema import ServedNet

_NAMES = (
    "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoadCanceled",
    "ModelLoaded", "ModelRequiresCompilation", "NoModel", "NoSuchFile", "NotImplemented", "NotFound",
    "RuntimeException",
)  # fmt: skip
_TYPES: dict[str, Any] = {"tensor(uint8)": np.uint8, "tensor(float16)": np.float16}
"""What inputs other than float32 are fed with."""
_LACKS = ("NOT_IMPLEMENTED", "Current official support for domain", "Unsupported model IR version")
"""Parts of ONNX Runtime's messages about a model that another version may run."""


class Engine:
    """See :class:`bridge.engines.Engine`."""

    def __init__(self, net: ServedNet, *, opset: int | None = None, threads: int = 0) -> None:
        self._net, self._opset, self._threads = net, opset, threads

    @staticmethod
    def lacking(net: ServedNet, **_: object) -> list[int]:
        """Indices of the layers that standard ONNX cannot say."""
        return [index for index, layer in enumerate(net.layers) if not layer.has_onnx]

    def outputs(self, inputs: Arrays) -> dict[str, np.ndarray]:
        values, graph = self._run(inputs, every_top=False)
        return {graph.blobs.get(name, name): array for name, array in values.items()}

    def tops(self, inputs: Arrays) -> list[Tops]:
        values, graph = self._run(inputs, every_top=True)
        known = {**values, **inputs}
        return [tuple(known.get(name) for name in names) for names in graph.tops]

    def _run(self, inputs: Arrays, every_top: bool) -> tuple[dict[str, np.ndarray], Graph]:
        shapes = {name: list(inputs[name].shape) for name in self._net.inputs if name in inputs}
        file, graph = to_onnx_file(
            self._net, opset=self._opset, inputs=shapes, dynamic_batch=False, every_top=every_top
        )
        if not graph.outputs:  # Silence layers read all outputs
            return {}, graph
        return RuntimeSession(file, threads=self._threads, in_pieces=every_top)(inputs), graph


class RuntimeSession:
    """An exported model, loaded; its weights stay where they are.

    Args:
        file: The model.
        outputs: Names of values to show besides the model's own outputs.
        threads: To compute with; 0 is one per core.
        repeated: Whether it is run many times. Then the runtime keeps the memory of a run for the next, which is
            faster, and takes more than the values that are needed at once.
        in_pieces: Whether it is a few layers of a net. Then values stay in the order that the layers between have,
            and are not put into another one, and back, at each layer.

    Raises:
        ModelError: ONNX Runtime refuses the model.
        UnsupportedLayerError: This version of it does not know what another does.
    """

    def __init__(
        self,
        file: OnnxFile,
        outputs: Sequence[str] = (),
        threads: int = 0,
        *,
        repeated: bool = False,
        in_pieces: bool = False,
    ) -> None:
        ort = runtime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        if in_pieces:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.enable_cpu_mem_arena = options.enable_mem_pattern = repeated
        self._arrays = [np.ascontiguousarray(init.numpy()) for init in file.tensors.values()]  # the session uses them
        self._values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self._arrays]
        options.add_external_initializers(list(file.tensors), self._values)
        try:
            self._session = ort.InferenceSession(file.stub(outputs), options, providers=["CPUExecutionProvider"])
        except raised() as error:
            raise _refusal(error) from None
        self._repeated = repeated
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._inputs = {value.name: _TYPES.get(value.type, np.float32) for value in self._session.get_inputs()}

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs by name."""
        fed = {name: np.asarray(inputs[name], dtype, order="C") for name, dtype in self._inputs.items()}
        if self._repeated:
            return self._run(fed)
        with contextlib.suppress(*raised(), RuntimeError):  # a model may promise other extents than it has
            return self._run_into(fed, self._room(fed))
        return self._run(fed)

    def _run(self, fed: Arrays) -> dict[str, np.ndarray]:
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, fed), strict=True))
        except raised() as error:
            raise _refusal(error) from None

    def _room(self, fed: Arrays) -> dict[str, np.ndarray]:
        """An array for each float32 output whose extents are told: it is written there, and not copied."""
        inputs = self._session.get_inputs()
        named = [pair for value in inputs for pair in zip(value.shape, fed[value.name].shape, strict=False)]
        sizes = {extent: size for extent, size in named if isinstance(extent, str)}
        found = {}
        for value in self._session.get_outputs():
            extents = [sizes.get(extent, extent) for extent in value.shape]  # none as well where they are not known
            if (
                extents
                and value.type == "tensor(float)"
                and all(isinstance(extent, int) and extent > 0 for extent in extents)
            ):
                found[value.name] = np.empty(extents, np.float32)
        return found

    def _run_into(self, fed: Arrays, room: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        binding = self._session.io_binding()
        for name, array in fed.items():
            binding.bind_cpu_input(name, array)
        for name in self._outputs:
            if name in room:
                binding.bind_output(name, "cpu", 0, np.float32, room[name].shape, room[name].ctypes.data)
            else:
                binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        values = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        bound = {name for name, array in room.items() if values[name].data_ptr() == array.ctypes.data}
        # an output that is an input, or a constant, is not written
        return {name: room[name] if name in bound else value.numpy() for name, value in values.items()}


def runtime() -> Any:
    """The module onnxruntime, imported here and nowhere else in this package.

    Its builds for some systems send statistics to their maker, for which they look up a host and keep a number in the
    user's cache. The environment variable ``ORT_DISABLE_TELEMETRY`` has to be set before the import.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def raised() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises when it cannot load or run a model."""
    runtime()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(getattr(state, name) for name in _NAMES if hasattr(state, name))


def _refusal(error: Exception) -> ModelError | UnsupportedLayerError:
    text = " ".join(str(error).split())
    if any(words in text for words in _LACKS):
        return UnsupportedLayerError(f"ONNX Runtime does not run the model: {text}")
    return ModelError(f"ONNX Runtime refuses the model: {text}")
