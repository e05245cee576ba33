"""Where other converters go wrong, with the real Caffe as judge.

For each trap a recorded case that has it; the case must be able to tell: read as the other
tools read it, it gives something else than Caffe did, or cannot be.

| trap | who falls into it | case |
|---|---|---|
| groups, as one dense convolution | Chainer's CaffeFunction (block-diagonal, learns the zeros) | conv_group2, conv_depthwise |
| groups of a deconvolution | MMdnn writes an invalid graph | deconv_group |
| dilation ignored | Chainer; OpenCV for Deconvolution | conv_dilated, deconv_dilated |
| kernel, stride, pad as lists | caffe2onnx, caffe-onnx, ncnn, OpenVINO | conv_lists |
| last window behind the image dropped, where there is padding | all but OpenCV | pool_ave_clip, pool_mask_clip |
| averages that count padding | caffe-onnx, X2Paddle, ncnn | pool_ave_k3s2p1, pool_ave_k5s3p2 |
| round_mode | OpenCV, ncnn, OpenVINO, MMdnn, Chainer, TVM | pool_ave_floor, pool_max_floor |
| LRN's k | OpenCV, ncnn, caffe2onnx, caffe-onnx, X2Paddle | lrn_more_than_channels |
| LRN within a channel, which has no k | caffe2onnx, caffe-onnx, MMdnn, X2Paddle | lrn_within |
| BatchNorm's scale factor, other than 1, and 0 | caffe2onnx, caffe-onnx, Chainer (NaN) | bn_global, bn_zero_factor |
| InnerProduct transposed | OpenCV, ncnn, Chainer | ip_transpose |
| Eltwise's coefficients | caffe2onnx, inisis | eltwise_coeff |
| Scale by a second bottom, with a bias | OpenCV, caffe2onnx, ncnn | scale_axis0_two |
| Axpy's order of bottoms | OpenCV | (reference) |
| in-place chains, shared parameters, a BatchNorm read twice or not right before its Scale | caffe2onnx, caffe-onnx | net_inplace, net_siamese_shared, bn_read_twice |
"""  # noqa: E501

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge import engines
from bridge.errors import BridgeError
from bridge.onnx_export import to_onnx_model
from bridge.schema import Blob, Blobs, Net
from tests.conftest import GOLDEN, need
from tests.nets import make
from tests.test_golden import ATOL, RTOL, load

CASE = {path.name: path for path in GOLDEN}
ENGINES = pytest.mark.parametrize("engine", ["onnxruntime", "chainer"])
MISREADINGS = [
    ("conv_group2", "group: 2", ""),
    ("conv_depthwise", "group: 6", ""),
    ("deconv_group", "group: 3", ""),
    ("conv_dilated", "dilation: 2", ""),
    ("deconv_dilated", "dilation: 2", ""),
    ("conv_lists", "stride: 1 stride: 2", "stride: 2 stride: 1"),
    ("conv_lists", "kernel_size: 3 kernel_size: 2", "kernel_size: 3"),
    ("pool_ave_floor", "round_mode: FLOOR", ""),
    ("pool_max_floor", "round_mode: FLOOR", ""),
    ("lrn_more_than_channels", "k: 3", ""),
    ("lrn_within", "norm_region: WITHIN_CHANNEL", ""),
    ("ip_transpose", "transpose: true", ""),
    ("eltwise_coeff", "coeff: 0.5 coeff: -1.5 coeff: 2", ""),
    ("eltwise_coeff", "coeff: 0.5 coeff: -1.5", "coeff: 1 coeff: -1"),
    ("scale_axis0_two", "bias_term: true", ""),
]
"""A case, what its prototxt says, and what a tool reads that overlooks it."""


def outputs(net: Net, inputs: dict[str, np.ndarray], engine: str) -> dict[str, np.ndarray]:
    need(engine)
    return engines.make(engine, net).outputs(inputs)


def agree(mine: dict[str, np.ndarray], recorded: dict[str, np.ndarray]) -> bool:
    return all(
        mine[name].shape == array.shape and np.allclose(mine[name], array, RTOL, ATOL)
        for name, array in recorded.items()
    )


def reworded(case: str, old: str, new: str, folder: Path) -> Net:
    """The case with its prototxt changed."""
    text = (CASE[case] / "deploy.prototxt").read_text()
    assert old in text
    (folder / "deploy.prototxt").write_text(text.replace(old, new))
    return bridge.load(folder / "deploy.prototxt", CASE[case] / "weights.caffemodel")


@ENGINES
@pytest.mark.parametrize(("case", "old", "new"), MISREADINGS)
def test_a_case_tells_what_others_overlook(case: str, old: str, new: str, engine: str, tmp_path: Path) -> None:
    _, inputs, recorded = load(CASE[case])
    assert agree(outputs(reworded(case, old, old, tmp_path), inputs, engine), recorded)
    try:
        misread = outputs(reworded(case, old, new, tmp_path), inputs, engine)
    except BridgeError:  # the weights do not fit what was read
        return
    assert not agree(misread, recorded)


# ---- pooling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["pool_ave_clip", "pool_mask_clip"])
def test_a_last_window_behind_the_image_is_dropped(case: str) -> None:
    net, inputs, recorded = load(CASE[case])
    kernel, stride, pad = ((values[0]) for values in (net["l"].kernel_size, net["l"].stride, net["l"].pad))
    height = inputs["data"].shape[2]
    usual = -(-(height + 2 * pad - kernel) // stride) + 1
    assert recorded["out"].shape[2] == usual - 1
    assert net.infer()[-1][0] == recorded["out"].shape


@pytest.mark.parametrize("case", ["pool_ave_k3s2p1", "pool_ave_k5s3p2"])
def test_an_average_counts_the_padding(case: str) -> None:
    net, inputs, recorded = load(CASE[case])
    kernel, pad = net["l"].kernel_size[0], net["l"].pad[0]
    corner = inputs["data"][:, :, : kernel - pad, : kernel - pad].sum((2, 3))
    np.testing.assert_allclose(recorded["out"][:, :, 0, 0], corner / kernel**2, RTOL, ATOL)


@ENGINES
@pytest.mark.parametrize("case", ["pool_ave_floor", "pool_max_floor", "pool_max_k2s2_odd", "pool_ave_k3s2"])
def test_round_mode_is_a_number_in_a_caffemodel(case: str, engine: str) -> None:
    """TVM compares that number with a word, so that all its pooling rounds down."""
    _, inputs, recorded = load(CASE[case])
    alone = bridge.load(CASE[case] / "weights.caffemodel")
    assert agree(outputs(alone.with_input_shapes({"data": inputs["data"].shape}), inputs, engine), recorded)


# ---- normalisation -----------------------------------------------------------------------------------


@ENGINES
@pytest.mark.parametrize("k", [0.5, 1, 7])
def test_normalisation_within_a_channel_has_no_k(k: float, engine: str, tmp_path: Path) -> None:
    _, inputs, recorded = load(CASE["lrn_within"])
    net = reworded("lrn_within", "alpha: 0.5", f"alpha: 0.5 k: {k}", tmp_path)
    assert agree(outputs(net, inputs, engine), recorded)


@ENGINES
def test_statistics_are_divided_by_their_factor(engine: str) -> None:
    net, inputs, recorded = load(CASE["bn_global"])
    factor = float(net["l"].scale_factor[0])
    assert abs(factor - 1) > 0.1
    assert agree(outputs(net, inputs, engine), recorded)
    assert not agree(outputs(with_factor(net, 1.0), inputs, engine), recorded)
    assert not agree(outputs(with_factor(net, factor * 1.01), inputs, engine), recorded)


def with_factor(net: Net, factor: float) -> Net:
    blobs = {**dict(net["l"].blobs.entries()), "scale_factor": Blob.of(np.float32([factor]))}
    changed = dataclasses.replace(net["l"], blobs=Blobs(blobs))
    return net.replace(layers=tuple(changed if layer.name == "l" else layer for layer in net.layers))


@ENGINES
def test_statistics_with_a_factor_of_zero_are_zero(engine: str) -> None:
    net, inputs, recorded = load(CASE["bn_zero_factor"])
    assert net["l"].scale_factor[0] == 0
    np.testing.assert_allclose(recorded["out"], inputs["data"] / np.sqrt(np.float32(1e-5)), 1e-4)
    assert agree(outputs(net, inputs, engine), recorded)


@ENGINES
def test_a_scale_may_stand_anywhere_behind_its_normalisation(engine: str, tmp_path: Path) -> None:
    """As what is fused with what must follow from who reads it, not from the order of the file."""
    _, inputs, recorded = load(CASE["net_inplace"])
    between = 'layer { name: "aside" type: "Power" bottom: "data" top: "aside" }\n'
    net = reworded("net_inplace", 'layer { name: "s1"', between + 'layer { name: "s1"', tmp_path)
    assert agree(outputs(net, inputs, engine), recorded)
    kinds = [node.op_type for node in to_onnx_model(net)[0].graph.node]
    assert kinds.count("BatchNormalization") == 1
    assert not {"Mul", "Add"} & set(kinds)


def test_a_normalisation_that_is_read_twice_keeps_its_result() -> None:
    kinds = [node.op_type for node in to_onnx_model(load(CASE["bn_read_twice"])[0])[0].graph.node]
    assert sorted(kinds) == ["Add", "BatchNormalization", "Mul"]


# ---- parameters ---------------------------------------------------------------------------------------


def test_a_grouped_weight_is_stored_as_caffe_has_it_and_trained_as_it_is() -> None:
    need("chainer")
    net = load(CASE["conv_group2"])[0]
    weight = net["l"].weight
    (tensor,) = (t for t in to_onnx_model(net)[0].graph.initializer if len(t.dims) == 4)
    chain = bridge.build_chain(net)
    assert tuple(tensor.dims) == weight.shape == chain.child("l").W.shape
    np.testing.assert_array_equal(chain.child("l").W.array, weight)


def test_shared_parameters_are_one_tensor() -> None:
    model, _ = to_onnx_model(load(CASE["net_siamese_shared"])[0])
    readers = [node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(readers) == 4
    assert len(set(readers)) == 2


@ENGINES
def test_axpy_multiplies_the_second_bottom_by_the_first(engine: str) -> None:
    text = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {shape} }} }} }}\n'
        for name, shape in (("a", "dim: 2 dim: 3"), ("x", IMAGE), ("y", IMAGE))
    )
    net = make(text + 'layer { name: "s" type: "Axpy" bottom: "a" bottom: "x" bottom: "y" top: "s" }\n')
    rng = np.random.default_rng(0)
    a, x, y = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3), (2, 3, 4, 5), (2, 3, 4, 5)))
    found = outputs(net, {"a": a, "x": x, "y": y}, engine)["s"]
    np.testing.assert_allclose(found, a[:, :, None, None] * x + y, 1e-5, 1e-6)


IMAGE = "dim: 2 dim: 3 dim: 4 dim: 5"


@pytest.mark.parametrize("engine", ["onnxruntime", "chainer"])
@pytest.mark.parametrize(
    ("stride", "expected"),
    [(3, [[1, np.nan], [np.nan, np.nan]]), (4, [[1, 0], [0, 0]])],
    ids=["ends where it starts", "ends before it starts"],
)
def test_the_average_over_an_empty_window_is_nothing_over_its_area(
    engine: str, stride: int, expected: list[list[float]]
) -> None:
    """Caffe divides by (hend - hstart) * (wend - wstart), which is 0 for a window right behind the image."""
    need(engine)
    net = make(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 1 dim: 3 dim: 3 } } }'
        'layer { name: "p" type: "Pooling" bottom: "x" top: "y" '
        f"pooling_param {{ pool: AVE kernel_size: 1 stride: {stride} }} }}"
    )
    with np.errstate(invalid="ignore"):
        (found,) = engines.make(engine, net).tops({"x": np.ones((1, 1, 3, 3), np.float32)})[-1]
    np.testing.assert_array_equal(found, np.float32([[expected]]))
