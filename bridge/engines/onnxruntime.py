"""The engine ONNX Runtime: runs the model that the exporter makes."""

from __future__ import annotations

from typing import Any

import numpy as np

from bridge.engines import Arrays, Tops
from bridge.inference import inference_net
from bridge.onnx_export import to_onnx_file
from bridge.onnx_export.graph import Graph
from bridge.schema import Net


class Engine:
    """See :class:`bridge.engines.Engine`."""

    def __init__(self, net: Net, *, opset: int | None = None, threads: int = 0) -> None:
        self._net, self._threads = inference_net(net), threads
        self._opset: dict[str, Any] = {} if opset is None else {"opset": opset}

    def outputs(self, inputs: Arrays) -> dict[str, np.ndarray]:
        values, graph = self._run(inputs, every_top=False)
        return {graph.blobs.get(name, name): array for name, array in values.items()}

    def tops(self, inputs: Arrays) -> list[Tops]:
        values, graph = self._run(inputs, every_top=True)
        known = {**values, **inputs}
        return [tuple(known.get(name) for name in names) for names in graph.tops]

    def _run(self, inputs: Arrays, every_top: bool) -> tuple[dict[str, np.ndarray], Graph]:
        import onnxruntime as ort

        shapes = {name: list(inputs[name].shape) for name in self._net.inputs if name in inputs}
        file, graph = to_onnx_file(
            self._net, inputs=shapes, dynamic_batch=False, every_top=every_top, **self._opset
        )
        if not graph.outputs:  # all of the net's blobs are silenced
            return {}, graph
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        session = ort.InferenceSession(file.tobytes(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        fed = {value.name: np.asarray(inputs[value.name], np.float32) for value in session.get_inputs()}
        return dict(zip(names, session.run(names, fed), strict=True)), graph
