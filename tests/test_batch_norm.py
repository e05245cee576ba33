"""What a BatchNorm's scale factor means, and NVCaffe's form of the layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge import engines
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import ModelError, UsageError
from bridge.layers.batch_norm import BatchNorm, read_zero_scale_factors
from bridge.schema import Blob, Net, RawLayer, RawNet
from tests.conftest import GOLDEN, need

MEAN, VARIANCE = np.float32([1, -2, 3]), np.float32([4, 0.25, 1])
ZERO = next(case for case in GOLDEN if case.name == "bn_zero_factor")


def net(params: str = "", blobs: int = 3, factor: float = 0, meaning: str = "bvlc") -> Net:
    """Two samples of three channels through one BatchNorm."""
    text = (
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 1 dim: 2 } } }'
        f'layer {{ name: "bn" type: "BatchNorm" bottom: "data" top: "out" batch_norm_param {{ {params} }} }}'
    )
    definition = prototxt.parse(text)
    gamma, beta = np.float32([2, 3, 4]), np.float32([-1, 0, 1])
    arrays = [MEAN, VARIANCE, np.float32([factor]), gamma, beta][:blobs]
    layer = RawLayer("bn", "BatchNorm", definition.messages("layer")[1], tuple(Blob.of(array) for array in arrays))
    return assemble(RawNet("net", (layer,), source="file"), definition, zero_scale_factor=meaning)


def run(net: Net, x: np.ndarray) -> np.ndarray:
    """What both engines compute."""
    first, second = (engines.make(name, net).outputs({"data": x})["out"] for name in ("onnxruntime", "chainer"))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    return first


X = np.random.default_rng(0).standard_normal((2, 3, 1, 2)).astype(np.float32)


def normal(mean: np.ndarray, variance: np.ndarray, eps: float) -> np.ndarray:
    return (X - mean.reshape(1, 3, 1, 1)) / np.sqrt(variance.reshape(1, 3, 1, 1) + eps)


def test_zero_is_zero_mean_and_variance_as_in_bvlc_caffe() -> None:
    need("onnxruntime", "chainer")
    read = net()
    np.testing.assert_allclose(run(read, X), normal(0 * MEAN, 0 * VARIANCE, 1e-5), rtol=1e-4)
    assert len(read.notes) == 1
    assert "layer 'bn': BatchNorm has scale factor 0" in read.notes[0]


def test_zero_is_one_as_nvcaffe_meant_it() -> None:
    need("onnxruntime", "chainer")
    read = net(meaning="nvcaffe")
    np.testing.assert_allclose(run(read, X), normal(MEAN, VARIANCE, 1e-5), rtol=1e-4)
    assert not read.notes
    assert read["bn"].blobs["scale_factor"] == 1


@pytest.mark.parametrize("meaning", ["bvlc", "nvcaffe"])
def test_nothing_changes_where_there_is_no_doubt(meaning: str) -> None:
    plain = net(factor=999.98)
    assert read_zero_scale_factors(plain, meaning) is plain


def test_zero_with_zero_statistics_is_a_net_before_training() -> None:
    made = net(factor=1)
    zeros = made["bn"].with_blobs([Blob.of(np.zeros(n)) for n in (3, 3, 1)])  # type: ignore[attr-defined]
    fresh = made.replace(layers=(made.layers[0], zeros))
    assert read_zero_scale_factors(fresh, "bvlc") is fresh


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "caffemodel", "onnx"])
def test_nvcaffes_form_reads_back_where_only_its_blobs_tell_it(suffix: str, tmp_path: Path) -> None:
    made = net(blobs=5, factor=2)
    (bridge.export_onnx if suffix == "onnx" else bridge.save)(made, tmp_path / f"net.{suffix}")
    back = bridge.load(tmp_path / f"net.{suffix}")["bn"]
    assert not back.uncovered
    for role in ("mean", "variance", "gamma", "beta"):
        np.testing.assert_array_equal(back.blobs[role], made["bn"].blobs[role])


def test_loading_takes_the_choice() -> None:
    files = ZERO / "deploy.prototxt", ZERO / "weights.caffemodel"
    layer = next(layer for layer in bridge.load(*files) if isinstance(layer, BatchNorm))
    assert not np.any(layer.blobs["scale_factor"])
    assert any("scale factor 0" in note for note in bridge.load(*files).notes)
    trusting = bridge.load(*files, zero_scale_factor="nvcaffe")
    assert np.all(trusting[layer.name].blobs["scale_factor"] == 1)
    assert not trusting.notes
    with pytest.raises(UsageError, match="'caffe2', expected bvlc or nvcaffe"):
        bridge.load(*files, zero_scale_factor="caffe2")


def test_what_was_read_as_nvcaffe_meant_it_is_written_so_that_all_read_it(tmp_path: Path) -> None:
    files = ZERO / "deploy.prototxt", ZERO / "weights.caffemodel"
    bridge.save(bridge.load(*files, zero_scale_factor="nvcaffe"), tmp_path / "a.npz")
    again = bridge.load(ZERO / "deploy.prototxt", tmp_path / "a.npz")
    assert not again.notes


@pytest.mark.parametrize("factor", [0, 1, 99])
@pytest.mark.parametrize("params", ["", "scale_bias: true", "scale_filler { value: 1 }", "use_global_stats: false"])
def test_nvcaffes_five_blobs_take_the_statistics_as_they_are(params: str, factor: float) -> None:
    need("onnxruntime", "chainer")
    read = net(f"{params} eps: 1e-9", blobs=5, factor=factor)
    gamma, beta = (np.float32(values).reshape(1, 3, 1, 1) for values in ([2, 3, 4], [-1, 0, 1]))
    np.testing.assert_allclose(run(read, X), normal(MEAN, VARIANCE, 1e-5) * gamma + beta, rtol=1e-4, atol=1e-5)
    assert not read.notes


def test_nvcaffes_form_needs_five_blobs() -> None:
    problem = net("scale_bias: true")["bn"]
    assert "has 3 blobs, expected 5 (mean, variance, scale_factor, gamma, beta)" in problem.reason()


def test_the_batchs_own_statistics_count_where_the_file_says_so() -> None:
    need("onnxruntime", "chainer")
    mean, variance = X.mean(axis=(0, 2, 3)), X.var(axis=(0, 2, 3))
    np.testing.assert_allclose(run(net("use_global_stats: false"), X), normal(mean, variance, 1e-5), rtol=1e-4)


def test_one_axis_is_refused() -> None:
    with pytest.raises(ModelError, match="the input has 1 axes, expected at least 2"):
        net()["bn"].infer((3,))


def test_nvcaffes_training_moves_the_mean_itself() -> None:
    need("chainer")
    from bridge.chain.build import build_chain
    from bridge.chain.functions import chainer

    chain = build_chain(net("moving_average_fraction: 0.75", blobs=5))
    with chainer.using_config("train", True):
        chain(X)
    moved = 0.75 * MEAN + 0.25 * X.mean(axis=(0, 2, 3))
    np.testing.assert_allclose(chain.array(1, "mean"), moved, rtol=1e-5)
    np.testing.assert_allclose(chain.array(1, "scale_factor"), 0)


@pytest.mark.parametrize("train", [False, True])
def test_float16_images_have_float32_statistics(train: bool) -> None:
    """A variance of 90,000 is beyond float16; and a GPU's kernel takes statistics, gamma and beta of one dtype."""
    need("chainer")
    from bridge.chain.functions import chainer

    x = (np.random.default_rng(0).choice([-300, 300], (4, 3, 5, 5))).astype(np.float16)
    made = net(factor=1)
    found = {}
    for dtype in (np.float16, np.float32):
        chain = bridge.build_chain(made)
        with chainer.using_config("train", train), chainer.using_config("type_check", False):
            found[dtype] = chain(chainer.Variable(x.astype(dtype)))
        found[dtype, "statistics"] = chain.child("bn").variance
    assert found[np.float16].dtype == np.float16
    np.testing.assert_allclose(found[np.float16].array, found[np.float32].array, rtol=2e-3)
    np.testing.assert_allclose(found[np.float16, "statistics"], found[np.float32, "statistics"], rtol=1e-5)
