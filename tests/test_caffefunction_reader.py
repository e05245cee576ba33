"""Reader ``caffefunction``: the bits it delivers, and what it says of those it does not."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from backends import protobuf
from bridge.caffe_files.proto import caffe_pb2 as pb
from bridge.errors import (
    INSTALL_CHAINER,
    BridgeError,
    FormatError,
    MissingExtraError,
    MissingFileError,
    ModelError,
    UnsupportedLayerError,
)
from bridge.schema import RawLayer, RawNet
from tests.conftest import FASHION, FIXTURES, GOLDEN, TRAINING, need, zoo
from tests.strategies import weights as strategies

SKIPPED = "CaffeFunction skips layers of this type"
V0 = "CaffeFunction skips layers of Caffe's first format (V0)"
DIVIDED = "CaffeFunction divides mean and variance by scale factor {} and keeps only the quotients"

# The types with blobs that CaffeFunction builds a link for.
LINKED = {"Convolution", "Deconvolution", "InnerProduct", "Scale", "BatchNorm"}


def expected_reason(layer: RawLayer, generation: str) -> str:
    """Why CaffeFunction does not deliver a layer that has blobs; empty if it does."""
    if generation == "v0":
        return V0
    if layer.type not in LINKED:
        return SKIPPED
    if layer.type == "BatchNorm" and (factor := float(layer.blobs[2].numpy()[0])) != 1:
        return DIVIDED.format(f"{factor:g}")
    return ""


# The cases that CaffeFunction does not read at all, by what the error says.
UNREADABLE = {
    "bn_default_double": "blob 0 is stored as double_data",
    "bn_global_double": "blob 0 is stored as double_data",
    "bn_zero_factor_double": "blob 0 is stored as double_data",
    "conv_3d": "blob 0 has 5 axes",
    "conv_group2_double": "blob 0 is stored as double_data",
    "ip_axis2": "Non-default axis in InnerProduct is not supported",
    "ip_transpose": r"could not broadcast input array from shape \(7,\) into shape \(594,\)",
    "lrn_within": "Within-channel LRN is not supported",
    "net_alexnet_mini_double": "blob 0 is stored as double_data",
    "softmax_axis0": "Softmax along non-channel axis is not supported",
}
REFUSALS = [*UNREADABLE.values(), r"blob 0 has \d axes"]


@pytest.fixture(autouse=True)
def _chainer() -> None:
    need("chainer")


def read(path: Path) -> RawNet:
    from backends import caffefunction

    return caffefunction.read(path)


def bits(layer: RawLayer) -> list[tuple[Any, Any, bytes]]:
    return [(blob.shape, blob.dtype, blob.numpy().tobytes()) for blob in layer.blobs]


def check_same_bits(path: Path) -> RawNet:
    """Every layer is as the other reader has it, or comes without blobs and says why."""
    found, expected = read(path), protobuf.read(path)
    assert [(layer.name, layer.type) for layer in found.layers] == [(x.name, x.type) for x in expected.layers]
    for layer, other in zip(found.layers, expected.layers, strict=True):
        assert bits(layer) == ([] if layer.uncovered else bits(other))
        assert not layer.uncovered or other.blobs
    return found


# -- recorded models -------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in GOLDEN if c.name not in UNREADABLE], ids=lambda path: path.name)
def test_delivers_the_recorded_cases_bit_for_bit_or_says_why_not(case: Path) -> None:
    path = case / "weights.caffemodel"
    if not _is_read(path):
        with pytest.raises(UnsupportedLayerError, match="|".join(REFUSALS)):
            read(path)
        return
    found = check_same_bits(path)
    generation = case.name.rpartition("_")[2]
    expected = {layer.name: expected_reason(layer, generation) for layer in protobuf.read(path).layers if layer.blobs}
    assert {layer.name: layer.uncovered for layer in found.layers if layer.name in expected} == expected


def test_delivers_most_of_the_recorded_cases_with_weights() -> None:
    whole = [c for c in GOLDEN if c.name not in UNREADABLE and _delivers_all(c / "weights.caffemodel")]
    assert len(whole) >= 25


def _is_read(path: Path) -> bool:
    try:
        read(path)
    except UnsupportedLayerError:
        return False
    return True


def _delivers_all(path: Path) -> bool:
    if not _is_read(path):
        return False
    found = read(path)
    return any(layer.blobs for layer in found.layers) and not any(layer.uncovered for layer in found.layers)


@pytest.mark.parametrize("case", UNREADABLE)
def test_refuses_what_caffefunction_cannot_read_in_one_line(case: str) -> None:
    path = FIXTURES / "golden" / case / "weights.caffemodel"
    with pytest.raises(UnsupportedLayerError, match=f"layer '.+' \\(.+\\): .*{UNREADABLE[case]}") as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in caught.value.args[0]
    assert caught.value.hint == "reader 'protobuf' reads it"


def test_delivers_the_alexnet_in_miniature() -> None:
    net = check_same_bits(FASHION / "fashion_alexnet.caffemodel")
    with_blobs = [layer for layer in net.layers if layer.blobs]
    assert [layer.name for layer in with_blobs] == ["conv1", "conv2", "conv3", "fc6", "fc8"]
    assert sum(len(layer.blobs) for layer in with_blobs) == 10
    assert not any(layer.uncovered for layer in net.layers)
    assert net.reader == "caffefunction"


@pytest.mark.parametrize("path", sorted(TRAINING.glob("*/*.caffemodel")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_delivers_what_the_real_solver_wrote(path: Path) -> None:
    if path.parent.name == "adadelta_poly":  # its LRN is within channels
        with pytest.raises(UnsupportedLayerError, match=UNREADABLE["lrn_within"]):
            read(path)
        return
    check_same_bits(path)


@pytest.mark.zoo
@pytest.mark.parametrize(
    "model",
    ["bigdl_test", "cifar10_quick_v1", "htshinichi_test", "hyperlpr_finemapping", "hyperlpr_segmentation", "mtcnn_det1",
     "mtcnn_det2", "mtcnn_det3", "triplet_3dobj", "wechat_sr"],
)  # fmt: skip
def test_delivers_third_parties_models(model: str) -> None:
    check_same_bits(zoo(model) / "weights.caffemodel")


@given(strategies.grouped_weights(("f4",), (2, 2)))
def test_takes_any_kernel_out_of_its_diagonal_again(case: tuple[np.ndarray, int]) -> None:
    weight, group = case
    weight[np.isnan(weight)] = np.nan  # on its way through Python's floats a signalling NaN becomes a quiet one
    net = pb.NetParameter()
    kernel = {"kernel_h": weight.shape[2], "kernel_w": weight.shape[3]}
    layer = net.layer.add(name="l", type="Convolution")
    layer.convolution_param.MergeFrom(
        pb.ConvolutionParameter(num_output=weight.shape[0], group=group, bias_term=False, **kernel)
    )
    add_blob(layer, weight)
    (found,) = written_and_read(net).layers
    assert bits(found) == [(weight.shape, weight.dtype, weight.tobytes())]


# -- made by hand ----------------------------------------------------------------------------

TMP: list[Path] = []


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    TMP[:] = [tmp_path_factory.mktemp("nets")]


def written_and_read(net: Any) -> RawNet:
    path = TMP[0] / "net.caffemodel"
    path.write_bytes(net.SerializeToString())
    return read(path)


def add_blob(layer: Any, values: Any, **fields: Any) -> None:
    array = np.asarray(values, np.float32)
    blob = layer.blobs.add(**fields)
    if not fields:
        blob.shape.dim.extend(array.shape)
        blob.data.extend(array.reshape(-1).tolist())


def inner_product(name: str = "l") -> Any:
    net = pb.NetParameter()
    layer = net.layer.add(name=name, type="InnerProduct", bottom=["x"], top=["y"])
    layer.inner_product_param.num_output = 2
    add_blob(layer, np.arange(6).reshape(2, 3))
    add_blob(layer, [0.5, -0.0])
    return net


def batch_norm(*factor: float) -> Any:
    net = pb.NetParameter()
    layer = net.layer.add(name="l", type="BatchNorm")
    add_blob(layer, [-0.0, np.nan, 1e-40])
    add_blob(layer, [1, 2, 3e38])
    if factor:
        add_blob(layer, factor)
    return net


@pytest.mark.parametrize("factor", [(), (1.0,)])
def test_statistics_with_no_factor_or_one_come_unchanged(factor: tuple[float, ...]) -> None:
    net = batch_norm(*factor)
    (found,) = written_and_read(net).layers
    assert not found.uncovered
    expected = [np.array(blob.data, np.float32).tobytes() for blob in net.layer[0].blobs]
    assert [values for _, _, values in bits(found)] == expected


@pytest.mark.parametrize("factor", [0.0, 999.98, np.nextafter(np.float32(1), np.float32(2)), np.nan])
def test_statistics_that_were_divided_are_not_delivered(factor: float) -> None:
    (found,) = written_and_read(batch_norm(float(factor))).layers
    assert not found.blobs
    assert found.uncovered.startswith("CaffeFunction divides mean and variance by scale factor")


def test_scale_with_a_second_bottom_has_only_a_shift() -> None:
    net = pb.NetParameter()
    layer = net.layer.add(name="l", type="Scale", bottom=["x", "gamma"], top=["y"])
    layer.scale_param.bias_term = True
    add_blob(layer, [1, 2, 3])
    (found,) = written_and_read(net).layers
    assert [blob.numpy().tolist() for blob in found.blobs] == [[1, 2, 3]]


def test_blobs_that_caffefunction_drops_are_told() -> None:
    net = inner_product()
    add_blob(net.layer[0], [7])
    add_blob(net.layer.add(name="r", type="ReLU"), [7])
    net.layer.add(name="d", type="Data")
    net.layer.add(name="t", type="TanH")
    net.layer.add(name="u", type="TanH")
    found = written_and_read(net)
    assert found.layers[0].uncovered == "CaffeFunction takes 2 of its 3 blobs"
    assert found.layers[1].uncovered == "CaffeFunction expects no blobs in layers of this type, and drops them"
    assert found.notes == (
        "not covered, and without values: layer 'd' (Data), layer 't' (TanH), layer 'u' (TanH): "
        "CaffeFunction skips layers of this type",
    )


def test_legacy_shapes_are_delivered_as_declared() -> None:
    net = pb.NetParameter()
    layer = net.layers.add(name="l", type=pb.V1LayerParameter.INNER_PRODUCT)
    layer.inner_product_param.num_output = 2
    add_blob(layer, None, num=1, channels=1, height=2, width=3, data=range(6))
    add_blob(layer, None, num=1, channels=1, height=1, width=2, data=range(2))
    (found,) = written_and_read(net).layers
    assert [blob.shape for blob in found.blobs] == [(1, 1, 2, 3), (1, 1, 1, 2)]
    assert found.type == "InnerProduct"


def test_a_parameter_that_chainer_does_not_know_makes_the_definition_incomplete() -> None:
    net = inner_product()
    net.layer.add(name="in", type="Input").input_param.shape.add(dim=[1, 3])
    net.layer.add(name="s", type="Softmax")
    found = written_and_read(net)
    assert not found.complete
    assert (
        "Chainer's caffe.proto does not know every parameter of layer 'in' (Input); a prototxt has them" in found.notes
    )
    del net.layer[1]
    assert written_and_read(net).complete


def test_definitions_come_in_caffes_current_form() -> None:
    path = FIXTURES / "golden" / "net_alexnet_mini_v1" / "weights.caffemodel"
    found, expected = read(path), protobuf.read(path)
    assert [layer.definition for layer in found.layers] == [layer.definition for layer in expected.layers]


# -- what CaffeFunction raises at ------------------------------------------------------------


def clash() -> Any:
    return inner_product("params")


def twins() -> Any:
    net = inner_product()
    net.layer.add().CopyFrom(net.layer[0])
    return net


def without_blobs() -> Any:
    net = inner_product()
    del net.layer[0].blobs[:]
    return net


def without_bias() -> Any:
    net = inner_product()
    del net.layer[0].blobs[1]
    return net


def double() -> Any:
    net = inner_product()
    blob = net.layer[0].blobs[0]
    blob.double_data.extend(blob.data)
    del blob.data[:]
    return net


def half() -> Any:
    net = inner_product()
    blob = net.layer[0].blobs[0]
    blob.raw_data_type, blob.raw_data = 2, np.zeros(6, np.float16).tobytes()
    del blob.data[:]
    return net


def short() -> Any:
    net = inner_product()
    del net.layer[0].blobs[0].data[1:]  # CaffeFunction would broadcast the one that is left
    return net


def long() -> Any:
    net = inner_product()
    net.layer[0].blobs[0].data.append(0)  # CaffeFunction would cut it off
    return net


def flat_statistics() -> Any:
    net = batch_norm()
    for blob in net.layer[0].blobs:
        blob.ClearField("shape")
        blob.num, blob.channels, blob.height, blob.width = 1, 3, 1, 1
    return net


def convolution(shape: tuple[int, ...] = (4, 1, 2, 2), group: int = 1, kernel: int = 2) -> Any:
    net = pb.NetParameter()
    layer = net.layer.add(name="l", type="Convolution")
    layer.convolution_param.MergeFrom(
        pb.ConvolutionParameter(num_output=4, group=group, bias_term=False, kernel_size=[kernel])
    )
    add_blob(layer, np.ones(shape))
    return net


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (clash, "layer 'params' .* AttributeError: cannot register a new link params: attribute exists"),
        (twins, "cannot register a new link l: already registered|cannot register a new link l: attribute exists"),
        (without_blobs, "CaffeFunction raises IndexError"),
        (without_bias, "CaffeFunction raises IndexError"),
        (double, "blob 0 is stored as double_data, which CaffeFunction does not read"),
        (half, "blob 0 has 0 values in its field 'data', expected 6 = 2 x 3"),
        (short, "blob 0 has 1 values in its field 'data', expected 6 = 2 x 3"),
        (long, "blob 0 has 7 values in its field 'data', expected 6 = 2 x 3"),
        (flat_statistics, "CaffeFunction raises IndexError"),
        (lambda: convolution((4, 1, 2, 2, 2)), "blob 0 has 5 axes"),
        (lambda: convolution(kernel=1 << 30), "kernel 1073741824 x 1073741824, blob 0 is 4 x 1 x 2 x 2"),
        (lambda: convolution(group=3), "4 channels do not divide into 3 groups"),
        (lambda: convolution(group=0), "4 channels do not divide into 0 groups"),
    ],
)
def test_what_caffefunction_raises_becomes_one_line(make: Callable[[], Any], problem: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=problem) as caught:
        written_and_read(make())
    assert "layer '" in str(caught.value)
    assert "\n" not in caught.value.args[0]
    assert caught.value.hint == "reader 'protobuf' reads it"


def test_a_value_between_the_groups_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge import compat

    compat.import_chainer()
    from chainer.links.caffe import caffe_function

    def fill(self: Any, array: np.ndarray) -> None:
        array[...] = 1

    monkeypatch.setattr(caffe_function._ConvolutionBlob, "__call__", fill)
    with pytest.raises(ModelError, match=r"layer 'l' \(Convolution\): blob 'weight': value 1.0 at \[0, 1, 0, 0\]"):
        written_and_read(convolution(group=4))


def test_both_generations_in_one_file_are_refused() -> None:
    net = inner_product()
    net.layers.add(name="old", type=pb.V1LayerParameter.RELU)
    with pytest.raises(ModelError, match="has both 'layer' and 'layers'"):
        written_and_read(net)


# -- what is no caffemodel -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b"name: 'net'\n", "holds prototxt, expected a caffemodel"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "holds hdf5, expected a caffemodel"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x0a\x03net", "holds no layers, which CaffeFunction takes for an empty net"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=problem):
        read(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"absent\.caffemodel: cannot be read"):
        read(tmp_path / "absent.caffemodel")


@pytest.mark.parametrize("case", ["net_siamese_shared_v1", "net_inplace", "net_alexnet_mini_v0"])
def test_any_truncation_is_a_net_or_an_error_of_ours(tmp_path: Path, case: str) -> None:
    data = (FIXTURES / "golden" / case / "weights.caffemodel").read_bytes()
    path = tmp_path / "net.caffemodel"
    for length in range(0, len(data), 61):
        path.write_bytes(data[:length])
        with contextlib.suppress(BridgeError):
            read(path)


def test_without_chainer_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chainer", None)
    with pytest.raises(MissingExtraError, match="Chainer is not installed") as caught:
        read(FASHION / "fashion_alexnet.caffemodel")
    assert caught.value.hint == INSTALL_CHAINER
