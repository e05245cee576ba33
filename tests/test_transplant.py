"""A net's blobs in a chain that the user wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import ModelError, UsageError
from bridge.schema import Blob, Net, RawLayer, RawNet
from bridge.schema.groups import spread_groups
from tests import encode, nets
from tests.conftest import FASHION, need


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


ALEXNET = """
name: "AlexNet"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 99 dim: 99 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 6 kernel_size: 11 stride: 4 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "norm1" type: "LRN" bottom: "conv1" top: "norm1"
  lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 } }
layer { name: "pool1" type: "Pooling" bottom: "norm1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
  convolution_param { num_output: 16 pad: 2 kernel_size: 5 group: 2 } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "norm2" type: "LRN" bottom: "conv2" top: "norm2"
  lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 } }
layer { name: "pool2" type: "Pooling" bottom: "norm2" top: "pool2"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "conv3" type: "Convolution" bottom: "pool2" top: "conv3"
  convolution_param { num_output: 24 pad: 1 kernel_size: 3 } }
layer { name: "relu3" type: "ReLU" bottom: "conv3" top: "conv3" }
layer { name: "conv4" type: "Convolution" bottom: "conv3" top: "conv4"
  convolution_param { num_output: 24 pad: 1 kernel_size: 3 group: 2 } }
layer { name: "relu4" type: "ReLU" bottom: "conv4" top: "conv4" }
layer { name: "conv5" type: "Convolution" bottom: "conv4" top: "conv5"
  convolution_param { num_output: 16 pad: 1 kernel_size: 3 group: 2 } }
layer { name: "relu5" type: "ReLU" bottom: "conv5" top: "conv5" }
layer { name: "pool5" type: "Pooling" bottom: "conv5" top: "pool5"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "fc6" type: "InnerProduct" bottom: "pool5" top: "fc6" inner_product_param { num_output: 32 } }
layer { name: "relu6" type: "ReLU" bottom: "fc6" top: "fc6" }
layer { name: "drop6" type: "Dropout" bottom: "fc6" top: "fc6" dropout_param { dropout_ratio: 0.5 } }
layer { name: "fc7" type: "InnerProduct" bottom: "fc6" top: "fc7" inner_product_param { num_output: 32 } }
layer { name: "relu7" type: "ReLU" bottom: "fc7" top: "fc7" }
layer { name: "drop7" type: "Dropout" bottom: "fc7" top: "fc7" dropout_param { dropout_ratio: 0.5 } }
layer { name: "fc8" type: "InnerProduct" bottom: "fc7" top: "fc8" inner_product_param { num_output: 20 } }
layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }
"""
READERS = ["protobuf", "caffefunction", pytest.param("pycaffe", marks=pytest.mark.caffe)]


@pytest.fixture(scope="module", params=["V1", "V2"])
def alexnet(request: Any, tmp_path_factory: Any) -> tuple[Path, Path]:
    """An AlexNet in miniature: prototxt, and weights in the form of 2014 or of today."""
    folder = tmp_path_factory.mktemp("alexnet")
    (folder / "deploy.prototxt").write_text(ALEXNET)
    net = nets.make(ALEXNET)
    layers = []
    for layer in net.layers[1:]:
        arrays = [blob.numpy() - 0.6 for _, blob in layer.blobs.entries()]
        if request.param == "V1":  # four axes for everything
            arrays = [array.reshape((1,) * (4 - array.ndim) + array.shape) for array in arrays]
        style = "legacy" if request.param == "V1" else "shape"
        layers.append((layer.definition, [encode.blob(array, "packed", style) for array in arrays]))
    (folder / "alexnet.caffemodel").write_bytes(encode.net(layers, request.param))
    return folder / "deploy.prototxt", folder / "alexnet.caffemodel"


def articles_class() -> Any:
    """The class of the article, with its three edits: ``net[...].initializer`` where it had ``net.conv1.W``."""
    need("chainer")
    from bridge.chain.functions import chainer

    F, L = chainer.functions, chainer.links

    class Alex(chainer.Chain):
        """Single-GPU AlexNet without partition toward the channel axis."""

        insize = 99

        def __init__(self, net: Any, class_labels: int = 100) -> None:
            super().__init__(
                conv1=L.Convolution2D(
                    3, 6, 11, stride=4,
                    initialW=net["conv1"].initializer("weight"), initial_bias=net["conv1"].initializer("bias"),
                ),
                conv2=L.Convolution2D(
                    6, 16, 5, pad=2,
                    initialW=net["conv2"].initializer("weight"), initial_bias=net["conv2"].initializer("bias"),
                ),
                conv3=L.Convolution2D(
                    16, 24, 3, pad=1,
                    initialW=net["conv3"].initializer("weight"), initial_bias=net["conv3"].initializer("bias"),
                ),
                conv4=L.Convolution2D(
                    24, 24, 3, pad=1,
                    initialW=net["conv4"].initializer("weight"), initial_bias=net["conv4"].initializer("bias"),
                ),
                conv5=L.Convolution2D(
                    24, 16, 3, pad=1,
                    initialW=net["conv5"].initializer("weight"), initial_bias=net["conv5"].initializer("bias"),
                ),
                fc6=L.Linear(
                    64, 32, initialW=net["fc6"].initializer("weight"), initial_bias=net["fc6"].initializer("bias")
                ),
                fc7=L.Linear(
                    32, 32, initialW=net["fc7"].initializer("weight"), initial_bias=net["fc7"].initializer("bias")
                ),
                fc8=L.Linear(32, class_labels),
            )  # fmt: skip

        def features(self, x: Any) -> Any:
            h = F.max_pooling_2d(F.local_response_normalization(F.relu(self.conv1(x)), 5, 1, 2e-5, 0.75), 3, stride=2)
            h = F.max_pooling_2d(F.local_response_normalization(F.relu(self.conv2(h)), 5, 1, 2e-5, 0.75), 3, stride=2)
            h = F.relu(self.conv3(h))
            h = F.relu(self.conv4(h))
            h = F.max_pooling_2d(F.relu(self.conv5(h)), 3, stride=2)
            h = F.dropout(F.relu(self.fc6(h)))
            return F.dropout(F.relu(self.fc7(h)))

        def forward(self, x: Any, t: Any) -> Any:
            return F.softmax_cross_entropy(self.fc8(self.features(x)), t)

    return Alex


def bits(chain: Any) -> dict[str, bytes]:
    return {path: param.array.tobytes() for path, param in chain.namedparams() if param.array is not None}


# ---- the article ------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
def test_the_articles_class_is_filled_line_by_line(alexnet: tuple[Path, Path], reader: str) -> None:
    if reader == "caffefunction":
        need("chainer")
    alex = articles_class()
    net = bridge.load(*alexnet, reader=reader)
    chain = alex(net, class_labels=100)
    want = bridge.load(*alexnet, reader="protobuf")
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"):
        dense = spread_groups(want[name].weight, want[name].group)
        assert chain[name].W.array.tobytes() == dense.tobytes(), name
        assert chain[name].b.array.tobytes() == want[name].bias.tobytes(), name
    assert chain.fc8.W.shape == (100, 32)
    check_features(chain, want)


def check_features(chain: Any, net: Net) -> None:
    """The user's chain computes what the net computes up to its head, and trains."""
    from bridge.chain.functions import chainer

    x = np.random.default_rng(0).standard_normal((2, 3, 99, 99)).astype("f")
    with chainer.using_config("train", False):
        np.testing.assert_allclose(
            chain.features(x).array, bridge.build_chain(net).run({"data": x})["fc7"].array, rtol=1e-4, atol=1e-5
        )
    optimizer = chainer.optimizers.MomentumSGD(0.001).setup(chain)
    optimizer.update(chain, x, np.int32([1, 99]))


@pytest.mark.parametrize("reader", READERS)
def test_transplant_fills_the_articles_class_with_the_same_bits(alexnet: tuple[Path, Path], reader: str) -> None:
    if reader == "caffefunction":
        need("chainer")
    alex = articles_class()
    want = bridge.load(*alexnet, reader="protobuf")
    by_initializers = alex(want)
    chain = alex(nets.make(ALEXNET, seed=9))
    head = chain.fc8.W.array.copy()
    report = bridge.transplant(bridge.load(*alexnet, reader=reader), chain)
    filled, expected = bits(chain), bits(by_initializers)
    assert {path: filled[path] for path in filled if "fc8" not in path} == {
        path: expected[path] for path in expected if "fc8" not in path
    }
    assert np.array_equal(chain.fc8.W.array, head)
    assert not chain.fc8.b.array.any()
    assert [(row.layer, row.role) for row in report.mismatched] == [("fc8", "weight"), ("fc8", "bias")]
    assert [row.detail for row in report.mismatched] == ["20 x 32 does not fit 100 x 32", "20 does not fit 100"]
    assert len(report.filled) == 14
    assert not report.missing


def test_strict_names_an_array_that_nothing_was_for(alexnet: tuple[Path, Path]) -> None:
    net = bridge.load(*alexnet)
    chain = articles_class()(net, class_labels=20)
    chain.add_link("extra", links().Linear(2, 2, nobias=True))
    with pytest.raises(ModelError, match=r"array 'extra/W': no blob for it\n"):
        bridge.transplant(net, chain, strict=True)


def test_the_report_is_a_table(alexnet: tuple[Path, Path]) -> None:
    alex = articles_class()
    net = bridge.load(*alexnet)
    lines = str(bridge.transplant(net, alex(net))).splitlines()
    assert lines[0].split() == ["layer", "blob", "array", "state", "detail"]
    assert lines[3].split(maxsplit=4) == ["conv2", "weight", "conv2/W", "filled", "16 x 3 x 5 x 5 as 16 x 6 x 5 x 5"]
    assert lines[-1] == "14 filled, 0 skipped, 0 missing, 2 mismatched"
    columns = {line.index(" filled") for line in lines if " filled " in f"{line} " and not line[0].isdigit()}
    assert len(columns) == 1


def test_strict_fills_nothing_unless_everything_fits(alexnet: tuple[Path, Path]) -> None:
    alex = articles_class()
    chain = alex(nets.make(ALEXNET, seed=9))
    before = bits(chain)
    net = bridge.load(*alexnet)
    problem = r"alexnet.caffemodel: layer 'fc8': blob 'weight': 20 x 32 does not fit 100 x 32 \(1 more\)"
    with pytest.raises(ModelError, match=problem):
        bridge.transplant(net, chain, strict=True)
    assert bits(chain) == before
    report = bridge.transplant(net, chain, skip=["fc8"], strict=True)
    assert bits(chain) != before
    assert {(row.layer, row.path) for row in report.skipped} == {("fc8", ""), ("", "fc8/W"), ("", "fc8/b")}


# ---- a net of one layer, and a link -----------------------------------------------------------


def one(layer: str, *blobs: Any, seed: int = 0) -> Net:
    """A net of one layer ``l`` with blobs of these shapes, or these arrays."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(blob).astype("f") if isinstance(blob, tuple) else blob for blob in blobs]
    definition = prototxt.parse(f'layer {{ name: "l" bottom: "x" top: "y" {layer} }}')
    stored = RawLayer("l", "", definition.messages("layer")[0], tuple(Blob.of(array) for array in arrays))
    return assemble(RawNet("net", (stored,), source="file"), definition)


CONV = 'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 group: 2 }'
PLAIN = 'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 }'
DECONV = 'type: "Deconvolution" convolution_param { num_output: 6 kernel_size: 3 group: 2 }'
IP = 'type: "InnerProduct" inner_product_param { num_output: 6 }'
IP_T = 'type: "InnerProduct" inner_product_param { num_output: 6 transpose: true }'
BN = 'type: "BatchNorm"'

# What the net has, what the link is, and what the link's arrays are to be, as functions of the blobs.
LINKS: dict[str, tuple[Net, Callable[[Any], Any], dict[str, Callable[..., Any]]]] = {
    "grouped into grouped": (
        one(CONV, (6, 2, 3, 3), (6,)),
        lambda L: L.Convolution2D(4, 6, 3, groups=2),
        {"W": lambda w, b: w, "b": lambda w, b: b},
    ),
    "grouped into grouped of open size": (
        one(CONV, (6, 2, 3, 3), (6,)),
        lambda L: L.Convolution2D(None, 6, 3, groups=2),
        {"W": lambda w, b: w, "b": lambda w, b: b},
    ),
    "grouped spread to dense": (
        one(CONV, (6, 2, 3, 3), (6,)),
        lambda L: L.Convolution2D(4, 6, 3),
        {"W": lambda w, b: spread_groups(w, 2)},
    ),
    "grouped spread to dense of open size": (
        one(CONV, (6, 2, 3, 3), (6,)),
        lambda L: L.Convolution2D(None, 6, (3, 3)),
        {"W": lambda w, b: spread_groups(w, 2)},
    ),
    "grouped into N-dimensional": (
        one(CONV, (6, 2, 3, 3), (6,)),
        lambda L: L.ConvolutionND(2, 4, 6, 3, groups=2),
        {"W": lambda w, b: w},
    ),
    "grouped deconvolution": (
        one(DECONV, (4, 3, 3, 3), (6,)),
        lambda L: L.Deconvolution2D(4, 6, 3, groups=2),
        {"W": lambda w, b: w, "b": lambda w, b: b},
    ),
    "grouped deconvolution of open size, dense": (
        one(DECONV, (4, 3, 3, 3), (6,)),
        lambda L: L.Deconvolution2D(None, 6, 3),
        {"W": lambda w, b: spread_groups(w, 2)},
    ),
    "convolution into a Linear": (
        one(PLAIN, (6, 2, 3, 3), (6,)),
        lambda L: L.Linear(18, 6),
        {"W": lambda w, b: w.reshape(6, 18)},
    ),
    "convolution into a Linear of open size": (
        one(PLAIN, (6, 2, 3, 3), (6,)),
        lambda L: L.Linear(6),
        {"W": lambda w, b: w.reshape(6, 18)},
    ),
    "fully connected": (one(IP, (6, 18), (6,)), lambda L: L.Linear(18, 6), {"W": lambda w, b: w}),
    "fully connected, of 2014": (
        one(IP, (1, 1, 6, 18), (1, 1, 1, 6)),
        lambda L: L.Linear(18, 6),
        {"W": lambda w, b: w.reshape(6, 18), "b": lambda w, b: b.reshape(6)},
    ),
    "fully connected, transposed": (
        one(IP_T, (18, 6), (6,)),
        lambda L: L.Linear(None, 6),
        {"W": lambda w, b: w.T},
    ),
    "fully connected, transposed and square": (
        one(IP_T, (6, 6), (6,)),
        lambda L: L.Linear(6, 6),
        {"W": lambda w, b: w.T},
    ),
    "fully connected into a convolution": (
        one(IP, (6, 18), (6,)),
        lambda L: L.Convolution2D(2, 6, 3),
        {"W": lambda w, b: w.reshape(6, 2, 3, 3)},
    ),
    "fully connected into a convolution of open size": (
        one(IP, (6, 18), (6,)),
        lambda L: L.Convolution2D(None, 6, 3),
        {"W": lambda w, b: w.reshape(6, 2, 3, 3)},
    ),
    "embedding": (
        one('type: "Embed" embed_param { num_output: 4 input_dim: 7 bias_term: false }', (7, 4)),
        lambda L: L.EmbedID(7, 4),
        {"W": lambda w: w},
    ),
    "slopes": (one('type: "PReLU"', (5,)), lambda L: L.PReLU((5,)), {"W": lambda w: w}),
    "scale": (
        one('type: "Scale" scale_param { bias_term: true }', (5,), (5,)),
        lambda L: L.Scale(1, (5,), bias_term=True),
        {"W": lambda w, b: w, "bias/b": lambda w, b: b},
    ),
    "bias": (one('type: "Bias"', (5,)), lambda L: L.Bias(1, (5,)), {"b": lambda b: b}),
    "normalisation": (
        one(BN, (5,), np.float32([1, 2, 3, 4, 5]), np.float32([4])),
        lambda L: L.BatchNormalization(5, eps=1e-5),
        {"avg_mean": lambda m, v, s: m / 4, "avg_var": lambda m, v, s: v / 4, "gamma": lambda m, v, s: np.ones(5, "f")},
    ),
    "normalisation of open size": (
        one(BN, (5,), np.float32([1, 2, 3, 4, 5]), np.float32([4])),
        lambda L: L.BatchNormalization(axis=(0, 2, 3)),
        {"avg_mean": lambda m, v, s: m / 4, "avg_var": lambda m, v, s: v / 4, "beta": lambda m, v, s: np.zeros(5, "f")},
    ),
    "normalisation with scale factor 0": (
        one(BN, (5,), np.float32([1, 2, 3, 4, 5]), np.float32([0])),
        lambda L: L.BatchNormalization(5),
        {"avg_mean": lambda m, v, s: m * 0, "avg_var": lambda m, v, s: v * 0},
    ),
    "NVCaffe's normalisation": (
        one(BN, (5,), np.float32([1, 2, 3, 4, 5]), np.float32([4]), (5,), (5,)),
        lambda L: L.BatchNormalization(5),
        {"avg_mean": lambda m, v, s, g, b: m, "gamma": lambda m, v, s, g, b: g, "beta": lambda m, v, s, g, b: b},
    ),
    "PSPNet's normalisation": (
        one('type: "BN"', (1, 5, 1, 1), (1, 5, 1, 1), (1, 5, 1, 1), np.ones((1, 5, 1, 1), "f")),
        lambda L: L.BatchNormalization(5),
        {
            "avg_mean": lambda g, b, m, v: m.reshape(5),
            "gamma": lambda g, b, m, v: g.reshape(5),
            "beta": lambda g, b, m, v: b.reshape(5),
        },
    ),
}


def holder(**links: Any) -> Any:
    """A chain of these links."""
    from bridge.chain.functions import chainer

    chain = chainer.Chain()
    for name, link in links.items():
        chain.add_link(name, link)
    return chain


def value(link: Any, name: str) -> np.ndarray:
    for part in name.split("/"):
        link = getattr(link, part)
    return np.asarray(getattr(link, "array", link))


def links() -> Any:
    need("chainer")
    from bridge.chain.functions import chainer

    return chainer.links


@pytest.mark.parametrize("case", LINKS)
def test_a_link_gets_the_blobs_in_its_own_form(case: str) -> None:
    net, make, arrays = LINKS[case]
    chain = holder(l=make(links()))
    report = bridge.transplant(net, chain)
    blobs = [blob.numpy() for _, blob in net["l"].blobs.entries()]
    for name, expected in arrays.items():
        np.testing.assert_array_equal(value(chain.l, name), expected(*blobs))
    assert not report.mismatched
    assert {row.state for row in report.rows if row.layer} == {"filled"}


@pytest.mark.parametrize("case", LINKS)
def test_and_the_net_gets_them_back_bit_by_bit(case: str) -> None:
    net, make, _ = LINKS[case]
    chain = holder(l=make(links()))
    bridge.transplant(net, chain)
    back = bridge.from_chain(chain, net)
    for (role, blob), (_, old) in zip(back["l"].blobs.entries(), net["l"].blobs.entries(), strict=True):
        assert blob.numpy() is old.numpy(), role


REFUSED: dict[str, tuple[Net, Callable[[Any], Any], list[str]]] = {
    "other outputs": (
        one(CONV, (6, 2, 3, 3), (6,)),
        lambda L: L.Convolution2D(4, 8, 3, groups=2),
        ["6 x 2 x 3 x 3 does not fit 8 x 2 x 3 x 3", "6 does not fit 8"],
    ),
    "other outputs, open size": (
        one(CONV, (6, 2, 3, 3), (6,)),
        lambda L: L.Convolution2D(None, 8, 3),
        ["6 x 4 x 3 x 3 does not fit a link of 8 outputs", "6 does not fit 8"],
    ),
    "other outputs of a deconvolution, open size": (
        one(DECONV, (4, 3, 3, 3), (6,)),
        lambda L: L.Deconvolution2D(None, 4, 3),
        ["4 x 6 x 3 x 3 does not fit a link of 4 outputs", "6 does not fit 4"],
    ),
    "other outputs of a Linear, open size": (
        one(IP, (6, 18), (6,)),
        lambda L: L.Linear(None, 100),
        ["6 x 18 does not fit a link of 100 outputs", "6 does not fit 100"],
    ),
    "other kernel, open size": (
        one(CONV, (6, 2, 3, 3), (6,)),
        lambda L: L.Convolution2D(None, 6, 5, groups=2),
        ["6 x 2 x 3 x 3 does not fit a kernel of 5"],
    ),
    "other groups": (
        one(CONV, (6, 2, 3, 3), (6,)),
        lambda L: L.Convolution2D(None, 6, 3, groups=3),
        ["6 x 2 x 3 x 3 in 2 groups does not fit a link of 3"],
    ),
    "other groups, the very shape": (
        one(CONV, (6, 2, 3, 3), (6,)),
        lambda L: L.Convolution2D(6, 6, 3, groups=3),
        ["6 x 2 x 3 x 3 in 2 groups does not fit a link of 3"],
    ),
    "a dense link of as many inputs as a group has": (
        one(CONV, (6, 2, 3, 3), (6,)),
        lambda L: L.Convolution2D(2, 6, 3),
        ["6 x 2 x 3 x 3 in 2 groups does not fit a link of 1"],
    ),
    "no bias": (
        one(CONV, (6, 2, 3, 3), (6,)),
        lambda L: L.Convolution2D(4, 6, 3, groups=2, nobias=True),
        ["the link has no 'b'"],
    ),
    "not enough values for the kernel": (
        one(IP, (6, 17), (6,)),
        lambda L: L.Convolution2D(None, 6, 3),
        ["6 x 17 does not fit 6 x 1 x 3 x 3"],
    ),
    "another link": (one('type: "PReLU"', (5,)), lambda L: L.BatchNormalization(5), ["the link has no 'W'"]),
    "other channels": (
        one(BN, (5,), (5,), (1,)),
        lambda L: L.BatchNormalization(4),
        ["5 does not fit 4", "5 does not fit 4"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_told_and_nothing_filled(case: str) -> None:
    net, make, problems = REFUSED[case]
    chain = holder(l=make(links()))
    before = {path: None if p.array is None else p.array.copy() for path, p in chain.namedparams()}
    report = bridge.transplant(net, chain)
    assert [row.detail for row in report.mismatched] == problems
    assert not report.filled
    for path, param in chain.namedparams():
        assert (param.array is None) == (before[path] is None)
        assert param.array is None or np.array_equal(param.array, before[path])


# ---- names ------------------------------------------------------------------------------------


def two(first: str = "conv1", second: str = "conv2") -> Net:
    """Two convolutions of different shapes."""
    text = f"""
    layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 1 dim: 2 dim: 5 dim: 5 }} }} }}
    layer {{ name: "{first}" type: "Convolution" bottom: "x" top: "y"
      convolution_param {{ num_output: 3 kernel_size: 3 }} }}
    layer {{ name: "{second}" type: "Convolution" bottom: "y" top: "z"
      convolution_param {{ num_output: 4 kernel_size: 1 }} }}
    """
    return nets.make(text)


def convs() -> tuple[Any, Any]:
    L = links()
    return L.Convolution2D(2, 3, 3), L.Convolution2D(3, 4, 1)


def nested() -> Any:
    first, second = convs()
    return holder(features=holder(conv1=first, second=second), conv2=links().Linear(3, 3))


def paths(report: Any) -> dict[str, str]:
    return {row.layer: row.path.rpartition("/")[0] for row in report.filled}


@pytest.mark.parametrize(
    ("net", "rename", "expected"),
    [
        (two(), None, {"conv1": "features/conv1"}),
        (two("conv1", "features/second"), None, {"conv1": "features/conv1", "features/second": "features/second"}),
        (two(), {"conv2": "features/second"}, {"conv1": "features/conv1", "conv2": "features/second"}),
        (two(), {"conv2": "features.second"}, {"conv1": "features/conv1", "conv2": "features/second"}),
        (two("a_1", "a_2"), {"a_1": "conv1", "a_*": "second"}, {"a_1": "features/conv1", "a_2": "features/second"}),
        (two("a/conv1", "a/2"), {"a/2": "second", "a/*": "*"}, {"a/conv1": "features/conv1", "a/2": "features/second"}),
        (two("c1", "second"), [(r"c(\d)", r"features/conv\1")], {"c1": "features/conv1", "second": "features/second"}),
        (two("CONV1", "SECOND"), str.lower, {"CONV1": "features/conv1", "SECOND": "features/second"}),
    ],
)  # fmt: skip
def test_layers_find_their_links(net: Net, rename: Any, expected: dict[str, str]) -> None:
    chain = nested()
    report = bridge.transplant(net, chain, rename)
    assert paths(report) == expected
    assert np.array_equal(chain.features.conv1.W.array, net.layers[1].weight)


def test_characters_that_python_lacks_are_underscores() -> None:
    first, second = convs()
    chain = holder(conv1_3x3=first, inception_3a=holder(conv_1=second))
    net = two("conv1/3x3", "conv-1")
    assert paths(bridge.transplant(net, chain)) == {"conv1/3x3": "conv1_3x3", "conv-1": "inception_3a/conv_1"}


def test_a_name_that_two_links_end_in_is_not_guessed() -> None:
    L = links()
    chain = holder(a=holder(conv1=L.Convolution2D(2, 3, 3)), b=holder(conv1=L.Convolution2D(2, 3, 3)))
    report = bridge.transplant(two(), chain)
    assert not report.filled
    assert {row.detail for row in report.missing if row.layer} == {
        "several links of that name: a/conv1, b/conv1", "no link 'conv2'"
    }  # fmt: skip
    assert {row.path for row in report.missing if not row.layer} == {"a/conv1/W", "a/conv1/b", "b/conv1/W", "b/conv1/b"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"rename": {"conv9": "x"}}, r"rename: no layer with blobs is called 'conv9'\n  hint: did you mean 'conv[12]'"),
        ({"rename": {"cov*": "x"}}, r"no layer with blobs is called 'cov\*'\n  hint: did you mean 'conv[12]'"),
        ({"rename": {"conv?": "x"}}, "no layer with blobs is called 'conv\\?'"),
        ({"rename": {"data": "conv1"}}, "no layer with blobs is called 'data'"),
        (
            {"rename": {"conv1": "features/conv11"}},
            "layer 'conv1': no link 'features/conv11'\n  hint: .*'features/conv1'",
        ),
        ({"rename": {"c*v*": "x"}}, r"'c\*v\*' has 2 \*, expected one"),
        ({"rename": {"conv1": 1}}, "layer 'conv1' becomes 1, expected a name"),
        ({"rename": lambda name: None}, "layer 'conv1' becomes None, expected a name"),
        ({"rename": [("cnv1", "conv1")]}, "no layer with blobs is called 'cnv1'\n  hint: did you mean 'conv[12]'"),
        ({"rename": [("conv(", "conv1")]}, "expected a mapping, pairs of a regular expression"),
        ({"rename": ["conv1"]}, "expected a mapping, pairs of a regular expression"),
        ({"rename": [("conv1", r"x\2")]}, r"'x\\2' is no valid replacement for 'conv1'"),
        ({"rename": {"conv1": "conv1"}, "by": "order"}, "rename has no meaning with by='order'"),
        ({"rename": {"conv*": "conv1"}}, "layers 'conv1' and 'conv2' both go to 'features/conv1/W'"),
        ({"skip": ["fc8"]}, "nothing is called 'fc8'"),
        ({"skip": ["cnv*"]}, r"nothing is called 'cnv\*'\n  hint: did you mean 'conv[12]'"),
        ({"by": "shape"}, "expected 'name' or 'order'"),
    ],
)
def test_a_wrong_call_fills_nothing(arguments: dict[str, Any], problem: str) -> None:
    chain = nested()
    before = bits(chain)
    with pytest.raises(UsageError, match=problem):
        bridge.transplant(two(), chain, **arguments)
    assert bits(chain) == before


@pytest.mark.parametrize("skip", ["conv1", ["conv1"], ["*1"], ["features/conv1"]])
def test_layers_and_links_can_be_left_out(skip: list[str]) -> None:
    chain = nested()
    before = chain.features.conv1.W.array.copy()
    report = bridge.transplant(two(), chain, {"conv2": "features/second"}, skip)
    assert np.array_equal(chain.features.conv1.W.array, before)
    assert paths(report) == {"conv2": "features/second"}
    assert {row.state for row in report.rows if "conv1" in row.layer + row.path} == {"skipped"}


def test_shared_parameters_are_filled_once() -> None:
    text = """
    layer { name: "a" type: "Input" top: "a" input_param { shape { dim: 1 dim: 2 } } }
    layer { name: "ip" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } param { name: "b" }
      inner_product_param { num_output: 2 } }
    layer { name: "ip_p" type: "InnerProduct" bottom: "b" top: "c" param { name: "w" } param { name: "b" }
      inner_product_param { num_output: 2 } }
    """
    net = nets.make(text)
    chain = holder(ip=links().Linear(2, 2))
    report = bridge.transplant(net, chain, strict=True)
    assert [row.state for row in report.rows] == ["filled", "filled", "skipped", "skipped"]
    assert {row.detail for row in report.skipped} == {"shared with layer 'ip'"}
    chain.ip.W.array[...] = 5
    back = bridge.from_chain(chain, net)
    assert back["ip_p"].weight is back["ip"].weight
    assert (back["ip"].weight == 5).all()


def test_two_values_for_a_parameter_that_layers_share_are_refused_on_the_way_back() -> None:
    text = """
    layer { name: "a" type: "Input" top: "a" input_param { shape { dim: 1 dim: 2 } } }
    layer { name: "ip" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } inner_product_param { num_output: 2 } }
    layer { name: "q" type: "InnerProduct" bottom: "b" top: "c" param { name: "w" } inner_product_param { num_output: 2 } }
    """  # noqa: E501
    net = nets.make(text)
    chain = holder(ip=links().Linear(2, 2), q=links().Linear(2, 2))
    bridge.transplant(net, chain)
    bridge.from_chain(chain, net)
    chain.q.W.array[...] = 5
    with pytest.raises(ModelError, match="several values for a parameter that layers share"):
        bridge.from_chain(chain, net)


def test_a_link_alone_is_a_chain_too() -> None:
    link = links().Linear(18, 6)
    net = one(IP, (6, 18), (6,))
    report = bridge.transplant(net, link, {"l": ""}, strict=True)
    assert [row.path for row in report.filled] == ["W", "b"]
    assert np.array_equal(link.W.array, net["l"].weight)


def test_a_built_chain_of_another_net_is_filled_by_its_layers_names() -> None:
    need("chainer")
    net = two("conv1/3x3", "params")
    chain = bridge.build_chain(two("conv1/3x3", "params"))
    for param in chain.params():
        param.array[...] = 0
    assert not bridge.transplant(net, chain, strict=True).skipped
    assert np.array_equal(chain.child("params").W.array, net["params"].weight)


# ---- order ------------------------------------------------------------------------------------


def test_layers_and_links_meet_in_order_whatever_their_names() -> None:
    L = links()
    chain = holder(
        zeta=L.Convolution2D(2, 3, 3), extra=L.Convolution2D(3, 3, 3), alpha=L.Convolution2D(None, 4, 1),
        head=L.Linear(9),
    )  # fmt: skip
    report = bridge.transplant(two(), chain, by="order")
    assert paths(report) == {"conv1": "zeta", "conv2": "alpha"}
    assert {row.path for row in report.missing} == {"extra/W", "extra/b", "head/W", "head/b"}


@settings(max_examples=30)
@given(data=st.data())
def test_as_many_as_possible_meet_and_never_across(data: st.DataObject) -> None:
    need("chainer")
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    wanted = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }\n' + "".join(
        f'layer {{ name: "ip{i}" type: "InnerProduct" bottom: "x" top: "y{i}" '
        f"inner_product_param {{ num_output: {n} }} }}\n"
        for i, n in enumerate(sizes)
    )
    chain = holder(**{f"l{9 - i}": links().Linear(2, n) for i, n in enumerate(wanted)})
    report = bridge.transplant(nets.make(text), chain, by="order")
    met = [(int(layer[2:]), 9 - int(path[1:])) for layer, path in paths(report).items()]
    assert met == sorted(met)
    assert all(sizes[i] == wanted[j] for i, j in met)
    assert len(met) == longest_common(sizes, wanted)


def longest_common(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


# ---- normalisation with its scale -------------------------------------------------------------

NORMALISED = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "y" }
layer { name: "scale" type: "Scale" bottom: "y" top: "y" scale_param { bias_term: true } }
layer { name: "bn2" type: "BatchNorm" bottom: "y" top: "z" }
"""


@pytest.mark.parametrize("size", [{"size": 3}, {"axis": (0, 2, 3)}])
@pytest.mark.parametrize("rename", [None, {"bn": "norms/n1", "bn2": "norms/n2"}])
def test_a_batch_norm_and_its_scale_go_into_one_link(size: dict[str, Any], rename: Any) -> None:
    L = links()
    from bridge.chain.functions import chainer

    net = nets.make(NORMALISED)
    first, second = (L.BatchNormalization(**size, eps=1e-5) for _ in range(2))
    chain = holder(norms=holder(n1=first, n2=second)) if rename else holder(bn=first, bn2=second)
    report = bridge.transplant(net, chain, rename)
    assert {row.layer for row in report.filled} == {"bn", "scale", "bn2"}
    assert not report.mismatched
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype("f")
    with chainer.using_config("train", False):
        expected = bridge.build_chain(net)(x).array
        np.testing.assert_allclose(second(first(x)).array, expected, rtol=1e-5)
    back = bridge.from_chain(chain, net, rename)
    assert all(a.blobs[role] is b.blobs[role] for a, b in zip(net, back, strict=True) for role in a.blobs)


def test_after_training_its_statistics_come_back_undivided() -> None:
    L = links()
    from bridge.chain.functions import chainer

    net = nets.make(NORMALISED)
    chain = holder(bn=L.BatchNormalization(3, eps=1e-5), bn2=L.BatchNormalization(3, eps=1e-5))
    bridge.transplant(net, chain)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype("f")
    chain.bn(x)  # in training mode: statistics of the first move
    chain.bn.gamma.array[...] += 1
    back = bridge.from_chain(chain, net)
    assert back["bn"].scale_factor == 1
    assert np.array_equal(back["bn"].mean, chain.bn.avg_mean)
    assert back["bn2"].mean is net["bn2"].mean
    with chainer.using_config("train", False):
        expected = chain.bn2(chain.bn(x)).array
        np.testing.assert_allclose(bridge.build_chain(back)(x).array, expected, rtol=1e-5)


def test_another_eps_is_told() -> None:
    report = bridge.transplant(nets.make(NORMALISED), holder(bn=links().BatchNormalization(3)))
    assert "the link's eps is 2e-05, the layer's 1e-05" in [row.detail for row in report.filled]


# ---- and back, of a chain that was trained ----------------------------------------------------


def test_a_dense_weight_comes_back_grouped() -> None:
    net = one(CONV, (6, 2, 3, 3), (6,))
    chain = holder(l=links().Convolution2D(4, 6, 3))
    bridge.transplant(net, chain)
    chain.l.W.array *= 2  # zeros between the groups stay zeros
    back = bridge.from_chain(chain, net)
    np.testing.assert_array_equal(back["l"].weight, net["l"].weight * 2)
    assert back["l"].bias is net["l"].bias
    chain.l.W.array += 1
    with pytest.raises(ModelError, match=r"blob 'weight' from 'l': value .* lies outside the 2 blocks"):
        bridge.from_chain(chain, net)


@pytest.mark.parametrize("case", sorted(LINKS))
def test_trained_values_come_back_in_the_blobs_form(case: str) -> None:
    net, make, _ = LINKS[case]
    first, second = holder(l=make(links())), holder(l=make(links()))
    bridge.transplant(net, first)
    for param in first.params():
        param.array[...] *= 2
    trained = bridge.from_chain(first, net)
    assert [blob.shape for _, blob in trained["l"].blobs.entries()] == [b.shape for _, b in net["l"].blobs.entries()]
    bridge.transplant(trained, second)
    for (path, param), (_, other) in zip(first.namedparams(), second.namedparams(), strict=True):
        if not (case.startswith("normalisation") and path[-5:] in ("gamma", "/beta")):  # the net has none
            assert np.array_equal(param.array, other.array), path


@pytest.mark.parametrize("arguments", [{"rename": {"conv1": "x"}}, {"skip": ["conv1"]}, {"by": "order"}])
def test_a_chain_that_was_built_from_the_net_leaves_nothing_to_say(arguments: dict[str, Any]) -> None:
    net = two()
    with pytest.raises(UsageError, match="are for chains of your own"):
        bridge.from_chain(bridge.build_chain(net), net, **arguments)


def test_a_layer_that_the_chain_does_not_have_is_named() -> None:
    chain = nested()
    with pytest.raises(UsageError, match=r"layer 'third' .*its blobs have no arrays in the chain: no link 'third'"):
        bridge.from_chain(chain, two("conv1", "third"))
    with pytest.raises(UsageError, match="rename: layer 'conv2': no link 'third'"):
        bridge.from_chain(chain, two(), {"conv2": "third"})
    net = two()
    bridge.transplant(net, chain, {"conv2": "second"})
    chain.features.conv1.W.array[...] = 1
    back = bridge.from_chain(chain, net, skip=["conv2"])
    assert (back["conv1"].weight == 1).all()
    assert back["conv2"].weight is net["conv2"].weight


def test_a_fashion_net_goes_into_a_users_class_and_back() -> None:
    L = links()
    net = bridge.load(FASHION / "deploy.prototxt", FASHION / "fashion_alexnet.caffemodel")
    chain = holder(
        conv1=L.Convolution2D(None, 16, 5), conv2=L.Convolution2D(None, 32, 5, pad=2, groups=2),
        conv3=L.Convolution2D(None, 32, 3, pad=1), fc6=L.Linear(None, 64), fc8=L.Linear(None, 10),
    )  # fmt: skip
    bridge.transplant(net, chain, strict=True)
    for layer in bridge.from_chain(chain, net):
        assert all(values is net[layer.name].blobs[role] for role, values in layer.blobs.items())
