"""The article's chain, line by line, filled with the blobs of an AlexNet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import ModelError
from bridge.schema import Net
from bridge.schema.groups import spread_groups
from tests import encode, nets
from tests.conftest import ROOT, need
from tests.test_transplant import bits, links


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
    assert lines[-1] == "14 filled, 0 skipped, 0 missing, 2 mismatched, 0 ambiguous"
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


# ---- the listings as they stand ---------------------------------------------------------------

LISTINGS = """
import bridge

import numpy as np
import chainer
import chainer.functions as F
import chainer.links as L
from chainer import cuda, optimizers
from chainer.links.caffe import CaffeFunction

net = CaffeFunction('alexnet.caffemodel')

class Alex(chainer.Chain):
    insize = 99
    def __init__(self):
        super(Alex, self).__init__(
            conv1 = L.Convolution2D(3, 6, 11, stride=4, initialW=net.conv1.W, initial_bias=net.conv1.b),
            conv2 = L.Convolution2D(6, 16, 5, pad=2, initialW=net.conv2.W, initial_bias=net.conv2.b),
            conv3 = L.Convolution2D(16, 24, 3, pad=1, initialW=net.conv3.W, initial_bias=net.conv3.b),
            conv4 = L.Convolution2D(24, 24, 3, pad=1, initialW=net.conv4.W, initial_bias=net.conv4.b),
            conv5 = L.Convolution2D(24, 16, 3, pad=1, initialW=net.conv5.W, initial_bias=net.conv5.b),
            fc6 = L.Linear(64, 32, initialW=net.fc6.W, initial_bias=net.fc6.b),
            fc7 = L.Linear(32, 32, initialW=net.fc7.W, initial_bias=net.fc7.b),
            my_fc8 = L.Linear(32, 100),
        )
        self.train = True

    def __call__(self, x, t):
        h = F.max_pooling_2d(F.relu(F.local_response_normalization(self.conv1(x))), 3, stride=2)
        h = F.max_pooling_2d(F.relu(F.local_response_normalization(self.conv2(h))), 3, stride=2)
        h = F.relu(self.conv3(h))
        h = F.relu(self.conv4(h))
        h = F.max_pooling_2d(F.relu(self.conv5(h)), 3, stride=2)
        h = F.dropout(F.relu(self.fc6(h)))
        h = F.dropout(F.relu(self.fc7(h)))
        h = self.my_fc8(h)
        self.loss = F.softmax_cross_entropy(h, t)
        return self.loss

class DelGradient(object):
    name = 'DelGradient'
    def __init__(self, delTgt):
        self.delTgt = delTgt

    def __call__(self, opt):
        for name,param in opt.target.namedparams():
            for d in self.delTgt:
                if d in name:
                    grad = param.grad
                    with cuda.get_device(grad):
                        grad = 0

model = Alex()
optimizer = optimizers.MomentumSGD(lr=0.001)
optimizer.setup(model)
optimizer.add_hook(DelGradient(["conv1", "conv2"]))
before = {name: param.data.copy() for name, param in model.namedparams()}
x = np.random.RandomState(0).randn(2, 3, 99, 99).astype(np.float32)
optimizer.update(model, x, np.array([1, 99], np.int32))
"""
CHECKS = """
want = bridge.load("deploy.prototxt", "alexnet.caffemodel")
for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"):
    dense = bridge.schema.groups.spread_groups(want[name].weight, want[name].group)
    assert before["/" + name + "/W"].tobytes() == dense.tobytes(), name
    assert before["/" + name + "/b"].tobytes() == want[name].bias.tobytes(), name
assert not np.array_equal(model.my_fc8.W.data, before["/my_fc8/W"])
print(type(net).__module__)
"""


@pytest.mark.process
@pytest.mark.parametrize("first", ["", "import bridge.compat; bridge.compat.install(caffe_function=True)\n"])
def test_the_articles_listings_run_as_they_stand(alexnet: tuple[Path, Path], first: str) -> None:
    """Under Chainer's CaffeFunction, whose grouped weights are dense, and under this package's, where they are not."""
    code = f"import sys, warnings; sys.path.insert(0, {str(ROOT)!r}); warnings.simplefilter('ignore')\n"
    code += f"{first}{LISTINGS}\nimport bridge.schema.groups\n{CHECKS}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=alexnet[0].parent, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ("bridge.chain.caffe_function" if first else "chainer.links.caffe.caffe_function")
