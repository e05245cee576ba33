"""The engine OpenCV, on the exported model, through its importer of ONNX files."""

from __future__ import annotations

import numpy as np

from bridge.engines import Arrays, Tops, opencv
from bridge.engines.onnxruntime import Engine as OnnxEngine
from bridge.engines.opencv import feed, import_opencv, in_shape, refusal
from bridge.onnx_export import to_onnx_model


class Engine(opencv.Engine):
    """See :class:`bridge.engines.Engine`."""

    lacking = staticmethod(OnnxEngine.lacking)

    def tops(self, inputs: Arrays) -> list[Tops]:
        cv2 = import_opencv("readNetFromONNX")
        extents = {name: list(inputs[name].shape) for name in self._net.inputs if name in inputs}
        shapes = self._net.infer({name: tuple(shape) for name, shape in extents.items()})
        model, graph = to_onnx_model(self._net, inputs=extents, dynamic_batch=False, every_top=True)
        try:
            loaded = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
            feed(loaded, {value.name: inputs[value.name] for value in model.graph.input})
            names = [value.name for value in model.graph.output]
            found = dict(zip(names, loaded.forward(names), strict=True)) if names else {}
        except cv2.error as error:
            raise refusal(error, self._net) from None
        known = {**{name: np.array(array) for name, array in found.items()}, **inputs}
        return [
            tuple(
                in_shape(known[name], extent) if name in known else None
                for name, extent in zip(tops, wanted, strict=True)
            )
            for tops, wanted in zip(graph.tops, shapes, strict=True)
        ]
