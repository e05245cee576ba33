"""Every recorded case of the real Caffe, through every engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge import engines
from bridge.schema import Net
from tests.conftest import FASHION, FIXTURES, GOLDEN, need, zoo

RTOL, ATOL = 1e-4, 1e-5
ZOO_MODELS = [
    "bigdl_test", "cifar10_quick_v1", "htshinichi_test", "hyperlpr_finemapping", "hyperlpr_segmentation",
    "mtcnn_det1", "mtcnn_det2", "mtcnn_det3", "triplet_3dobj", "wechat_detect", "wechat_detect_low", "wechat_sr",
]  # fmt: skip
WITHOUT_CHAINER = {"DetectionOutput"}
"""Post-processing whose result's shape depends on the data: it has no differentiable lowering."""


def load(case: Path) -> tuple[Net, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The net, its inputs, and the outputs that Caffe recorded."""
    weights = next(case.glob("*.caffemodel"))
    with np.load(case / "io.npz") as recorded:
        inputs = {key[3:]: recorded[key] for key in recorded if key.startswith("in:")}
        outputs = {key[4:]: recorded[key] for key in recorded if key.startswith("out:")}
    return bridge.load(case / "deploy.prototxt", weights), inputs, outputs


def check(engine: str, case: Path) -> None:
    net, inputs, recorded = load(case)
    if engine == "chainer" and any(layer.type in WITHOUT_CHAINER for layer in net.layers):
        pytest.skip("post-processing has no Chainer lowering")
    outputs = engines.make(engine, net).outputs(inputs)
    assert recorded or not net.outputs
    for name, expected in recorded.items():
        assert outputs[name].shape == expected.shape
        np.testing.assert_allclose(outputs[name], expected, RTOL, ATOL, err_msg=f"{case.name}: {name}")


@pytest.mark.parametrize("engine", ["onnxruntime", "chainer"])
@pytest.mark.parametrize("case", [*GOLDEN, FASHION], ids=lambda path: path.name)
def test_engine_computes_what_caffe_recorded(case: Path, engine: str) -> None:
    need(engine)
    check(engine, case)


@pytest.mark.zoo
@pytest.mark.parametrize("engine", ["onnxruntime", "chainer"])
@pytest.mark.parametrize("model", ZOO_MODELS)
def test_engine_computes_what_caffe_recorded_of_a_third_partys_model(model: str, engine: str) -> None:
    need(engine)
    check(engine, zoo(model))


def test_all_golden_cases_are_there() -> None:
    assert len(GOLDEN) >= 118
    assert all((FIXTURES / "golden" / case.name / "weights.caffemodel").exists() for case in GOLDEN)
