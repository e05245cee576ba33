"""Detectors in other runtimes: at the prototxt's size, at another, with nothing to detect, and with a full list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bridge
from bridge import engines
from bridge.exporting.targets import find_target, net_for
from bridge.schema import Net
from bridge.verification.detections import row_metrics
from tests.conftest import ZOO
from tests.runtimes import AGREES, DIFFERS, REFUSED, Runtime
from tests.test_fork_nets import detector

SITUATIONS: dict[str, dict[str, Any]] = {
    "its size": {},
    "another size": {},
    "nothing found": {"confidence_threshold": 1.5},
    "a full list": {"confidence_threshold": 0.0, "keep_top_k": 5},
}
"""What is tried, and the parameters that the last layer has for it."""
BOUND = 1e-4
"""The largest difference of a score or a corner that agrees."""
ROWS = 64
"""So many rows are added to the image for another size."""


@dataclass(frozen=True)
class Detector:
    """A net that ends in detections, and an image for it, (1, C, H, W) float32."""

    name: str
    net: Net
    image: np.ndarray


def detectors() -> Iterator[Detector]:
    """The small SSD with random weights, and trained ones where they are."""
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    yield Detector("small SSD", detector(64, 64), image)
    for name in ("wechat_detect", "wechat_detect_low"):
        if (ZOO / name).exists():
            net = bridge.load(ZOO / name / "deploy.prototxt", ZOO / name / "weights.caffemodel")
            with np.load(ZOO / name / "io.npz") as recorded:
                yield Detector(name, net, recorded["in:data"])


def judge_detector(runtime: Runtime, case: Detector, situation: str, folder: Path) -> str:
    """AGREES, DIFFERS or REFUSED: one file with open sides against ONNX Runtime on a file with fixed ones.

    OpenCV 4 gets a file of its own for each size, with ``target="opencv4"``.
    """
    image = np.concatenate([case.image, case.image[:, :, :ROWS]], axis=2) if situation == "another size" else case.image
    net, target = _changed(case.net, SITUATIONS[situation]), "opencv4" if runtime.key == "cv2 4" else ""
    name = next(iter(net.inputs))
    extents = list(image.shape) if target else ["batch", image.shape[1], "height", "width"]
    bridge.export_onnx(net, folder / "model.onnx", inputs={name: extents}, target=target, check=False)
    net = net_for(find_target(target), net)
    expected = engines.make("onnxruntime", net).outputs({name: image})
    try:
        found = runtime.run(folder / "model.onnx", {name: image}, list(expected))
    except Exception:  # each runtime raises classes of its own
        return REFUSED
    pairs = zip(expected, found, strict=True)
    return AGREES if all(_same(net, top, expected[top], np.asarray(array)) for top, array in pairs) else DIFFERS


def _changed(net: Net, parameters: dict[str, Any]) -> Net:
    """The net with other parameters in the layer that puts out detections."""
    return net.replace(
        layers=tuple(layer.changed(**parameters) if parameters and layer.detections(0) else layer for layer in net)
    )


def _same(net: Net, top: str, wanted: np.ndarray, found: np.ndarray) -> bool:
    place = net.flow.last[top]
    layout = net.layers[place.layer].detections(place.top)
    if layout is None:
        return wanted.size == found.size and np.allclose(found.reshape(wanted.shape), wanted, BOUND, BOUND)
    return not row_metrics(layout, wanted, found.reshape(1, 1, -1, 7), BOUND).mismatches
