"""OpenCV's fixtures of single layers: ``X.npy`` is what the real Caffe makes of the input by ``X.prototxt``."""

from __future__ import annotations

import numpy as np
import pytest

import bridge
from bridge import engines
from tests.conftest import need, zoo

RTOL, ATOL = 1e-4, 1e-5
CASES = [
    "layer_convolution", "layer_deconvolution", "layer_inner_product", "layer_lrn_channels", "layer_lrn_spatial",
    "layer_mvn", "layer_pooling_ave", "layer_pooling_max", "layer_softmax",
]  # fmt: skip

pytestmark = [pytest.mark.zoo, pytest.mark.parametrize("engine", ["onnxruntime", "chainer"])]


@pytest.mark.parametrize("name", CASES)
def test_engine_computes_what_opencv_recorded(name: str, engine: str) -> None:
    need(engine)
    folder = zoo("opencv_layers")
    weights = folder / f"{name}.caffemodel"
    own = folder / f"{name}.input.npy"
    x = np.load(own if own.exists() else folder / "blob.npy")
    net = bridge.load(folder / f"{name}.prototxt", *([weights] if weights.exists() else []))
    (output,) = engines.make(engine, net).outputs({"input": x}).values()
    np.testing.assert_allclose(output, np.load(folder / f"{name}.npy"), RTOL, ATOL)


def test_slices_joined_and_flattened_are_the_input_again(engine: str) -> None:
    need(engine)
    net = bridge.load(zoo("opencv_layers") / "reshape_and_slice_routines.prototxt")
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
    assert np.array_equal(engines.make(engine, net).outputs({"input": x})["output"], x.reshape(2, -1))
