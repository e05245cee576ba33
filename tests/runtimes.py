"""Exported files in runtimes that people use: what there is to run, and how to run it."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bridge
from bridge.layers.base import registered_name
from bridge.schema import Net
from bridge.testing import LayerCase
from tests.conftest import FASHION, GOLDEN, ROOT, ZOO
from tests.references import REFERENCES
from tests.test_fork_layers import SMOOTH
from tests.test_golden import ZOO_MODELS, load

RTOL, ATOL = 1e-4, 1e-5
AGREES, STATIC, DIFFERS, REFUSED = "agrees", "agrees if static", "differs", "refused"
VERDICTS = (REFUSED, DIFFERS, STATIC, AGREES)
"""What can come of a file, from bad to good."""
KNOWN = ROOT / "docs" / "runtimes.json"
"""What came of each file when the table in the docs was made."""

Arrays = Mapping[str, np.ndarray]


# -- runtimes ----------------------------------------------------------------------------------------


def _onnxruntime(path: Path, inputs: Arrays, names: list[str]) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(names, {value.name: inputs[value.name] for value in session.get_inputs()}))


def _opencv(path: Path, inputs: Arrays, names: list[str]) -> list[Any]:
    import cv2
    import onnx

    net = cv2.dnn.readNetFromONNX(str(path))
    for value in onnx.load(str(path), load_external_data=False).graph.input:
        net.setInput(np.ascontiguousarray(inputs[value.name]), value.name)
    return list(net.forward(names))


def _openvino(path: Path, inputs: Arrays, names: list[str]) -> list[Any]:
    import openvino

    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = model({name: inputs[name] for value in model.inputs for name in value.get_names() if name in inputs})
    return [np.array(found[name]) for name in names]


@dataclass(frozen=True)
class Runtime:
    """Something that runs ONNX files: its package, its name, and how."""

    package: str
    title: str
    run: Callable[[Path, Arrays, list[str]], list[Any]]

    @property
    def missing(self) -> bool:
        """Whether the package is not installed."""
        return importlib.util.find_spec(self.package) is None

    @property
    def version(self) -> str:
        """``5.0.0``"""
        return str(importlib.import_module(self.package).__version__).split("-")[0]

    @property
    def key(self) -> str:
        """Package and the part of the version that tells generations apart: ``cv2 5``, ``onnxruntime 1.32``."""
        parts = self.version.split(".")[: 2 if self.package == "onnxruntime" else 1]
        return f"{self.package} {'.'.join(parts)}"


RUNTIMES = (
    Runtime("onnxruntime", "ONNX Runtime", _onnxruntime),
    Runtime("cv2", "OpenCV", _opencv),
    Runtime("openvino", "OpenVINO", _openvino),
)

# -- what is run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A net with inputs, and what Caffe, or a reference, makes of them."""

    name: str
    load: Callable[[], tuple[Net, dict[str, np.ndarray], dict[str, np.ndarray]]]
    trained: bool = False

    def types(self) -> set[str]:
        """The layer types that it is about."""
        return {registered_name(layer.definition) for layer in self.load()[0].layers} - {"Input"}


SMALL = [
    LayerCase("Clip", "clip_param { min: -0.5 max: 1 }", ((2, 3, 4, 5),)),
    LayerCase("Mish", "", ((2, 3, 4, 5),)),
    LayerCase("HardSwish", "", ((2, 3, 4, 5),)),
    LayerCase("HardSigmoid", "", ((2, 3, 4, 5),)),
    LayerCase("L2Norm", "", ((2, 3, 4, 5),)),
    LayerCase("L2Normalize", "", ((2, 3, 4, 5),)),
    LayerCase(
        "ConvolutionDepthwise", "convolution_param { num_output: 3 kernel_size: 3 pad: 1 stride: 2 }", ((2, 3, 8, 9),)
    ),
    LayerCase("DepthwiseConvolution", "convolution_param { num_output: 3 kernel_size: 3 group: 3 }", ((2, 3, 8, 9),)),
]
"""Types that no recorded case and no other test's list has."""


def cases() -> Iterator[Case]:
    """Recorded cases with an output, layers of forks with a reference, and trained models where they are."""
    for path in (*GOLDEN, FASHION):
        with np.load(path / "io.npz") as recorded:
            if any(name.startswith("out:") for name in recorded):
                yield Case(path.name, lambda path=path: load(path), trained=path == FASHION)
    seen = Counter[str]()
    for case in (*SMOOTH, *SMALL):
        if case.type in REFERENCES:
            seen[case.type] += 1
            yield Case(f"reference {case.type} {seen[case.type]}", lambda case=case: _reference(case))
    for name in ZOO_MODELS:
        if (ZOO / name).exists():
            yield Case(name, lambda name=name: load(ZOO / name), trained=True)


def _reference(case: LayerCase) -> tuple[Net, dict[str, np.ndarray], dict[str, np.ndarray]]:
    net, inputs = case.net(), case.inputs()
    layer = net.layers[-1]
    blobs = [blob.numpy() for _, blob in layer.blobs.entries()]
    made = REFERENCES[case.type](layer.definition, blobs, [inputs[bottom] for bottom in layer.bottoms])
    return net, inputs, dict(zip(layer.tops, made, strict=True))


# -- the verdict -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What came of a file: one of VERDICTS, the largest difference, and what the runtime said."""

    verdict: str
    apart: float = 0.0
    said: str = ""


def judge(runtime: Runtime, case: Case, folder: Path) -> Result:
    """Export a case as anybody would, and run the file; where that fails, once more with fixed extents."""
    net, inputs, expected = case.load()
    free = _try(runtime, net, inputs, expected, folder / "open.onnx", {"inputs": _sides(net, inputs)})
    if free.verdict == AGREES:
        return free
    extents = {name: list(inputs[name].shape) for name in net.inputs if name in inputs}
    fixed = _try(runtime, net, inputs, expected, folder / "static.onnx", {"inputs": extents, "dynamic_batch": False})
    if fixed.verdict != AGREES:
        return free
    return Result(STATIC, fixed.apart, free.said or f"with open extents it differs by {free.apart:.2g}")


def _sides(net: Net, inputs: Arrays) -> dict[str, list[int | str]]:
    """Open sides for images that were recorded in another size than the net's own."""
    own = {name: shape for name, shape in net.inputs.items() if shape is not None and name in inputs}
    return {
        name: ["batch", shape[1], "height", "width"]
        for name, shape in own.items()
        if len(shape) == 4 and shape[2:] != inputs[name].shape[2:]
    }


def _try(runtime: Runtime, net: Net, inputs: Arrays, expected: Arrays, path: Path, options: dict[str, Any]) -> Result:
    bridge.export_onnx(net, path, check=False, **options)
    names = list(expected)
    try:
        found = runtime.run(path, {name: np.asarray(array, np.float32) for name, array in inputs.items()}, names)
    except Exception as error:  # each runtime raises classes of its own, OpenCV's and OpenVINO's none but RuntimeError
        return Result(REFUSED, said=" ".join(str(error).split()))
    apart = 0.0
    for name, array in zip(names, found, strict=True):
        mine, wanted = np.asarray(array, np.float32), expected[name]
        if mine.size != wanted.size:  # of another rank, as OpenCV has it, is all right
            return Result(DIFFERS, float("inf"), f"shape {mine.shape} in place of {wanted.shape}")
        mine = mine.reshape(wanted.shape)
        with np.errstate(all="ignore"):
            apart = max(apart, float(np.nan_to_num(np.abs(mine - wanted), nan=0, posinf=0).max(initial=0)))
        if not np.allclose(mine, wanted, RTOL, ATOL, equal_nan=True):
            return Result(DIFFERS, apart)
    return Result(AGREES, apart)


def known() -> dict[str, Any]:
    """What the table in the docs was made from."""
    return dict(json.loads(KNOWN.read_text(encoding="utf-8"))) if KNOWN.exists() else {}
