"""Nets in memory verified, against each other and against chains that a user wrote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import UsageError
from tests import nets
from tests.conftest import need

TEXT = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 23 dim: 23 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 6 kernel_size: 3 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "norm1" type: "LRN" bottom: "conv1" top: "norm1" lrn_param { local_size: 5 alpha: 0.01 beta: 0.75 } }
layer { name: "pool1" type: "Pooling" bottom: "norm1" top: "pool1" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "bn2" type: "BatchNorm" bottom: "conv2" top: "conv2" }
layer { name: "scale2" type: "Scale" bottom: "conv2" top: "conv2" scale_param { bias_term: true } }
layer { name: "fc8" type: "InnerProduct" bottom: "conv2" top: "fc8" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }
"""  # noqa: E501


@pytest.fixture(autouse=True)
def _needs_engines() -> None:
    need("chainer", "onnxruntime")


def written(**options: Any) -> Any:
    """A chain as a user writes it: links of the layers' names, and what is given in the place of the right thing."""
    from bridge.chain.functions import F, chainer

    L = chainer.links
    lrn = options.get("lrn", lambda h: F.local_response_normalization(h, 5, 1, 0.01 / 5, 0.75))
    lrn = lrn or F.local_response_normalization  # with Chainer's defaults

    class Model(chainer.Chain):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(
                conv1=L.Convolution2D(None, 6, 3),
                conv2=options.get("conv2") or L.Convolution2D(None, 4, 3),
                bn2=L.BatchNormalization(4, eps=options.get("eps", 1e-5)),
                fc8=L.Linear(None, options.get("classes", 5)),
            )

        def scores(self, x: Any) -> Any:
            h = F.max_pooling_2d(lrn(F.relu(self.conv1(x))), 3, stride=2)
            return self.fc8(self.bn2(self.conv2(h)))

        def forward(self, x: Any) -> Any:
            return F.softmax(self.scores(x))

    return Model()


def filled(net: bridge.Net, **options: Any) -> Any:
    chain = written(**options)
    bridge.transplant(net, chain)
    return chain


def test_a_net_in_memory_is_verified() -> None:
    net = nets.make(TEXT)
    report = bridge.verify(net)
    assert report.passed, report
    assert {(result.a, result.b) for result in report.outputs} == {("onnxruntime", "chainer")}
    assert report.files == (net.where,)


def test_two_nets_in_memory_are_compared() -> None:
    net = nets.make(TEXT)
    same = bridge.verify(net, against=nets.make(TEXT), engines=())
    assert same.passed, same
    other = bridge.verify(net, against=net.with_blobs("fc8", bias=net["fc8"].bias + 1))
    assert not other.passed
    assert {(difference.layer, getattr(difference, "role", "")) for difference in other.differences} == {
        ("fc8", "bias"), ("fc8", "")
    }  # fmt: skip


def test_a_chain_that_computes_the_net_passes() -> None:
    net = nets.make(TEXT)
    report = bridge.verify(net, against=filled(net), engines=["onnxruntime"])
    assert report.passed, report
    shown = {top.layer for result in report.outputs for top in result.tops if top.status == "same"}
    assert shown == {"conv1", "pool1", "conv2", "scale2", "fc8", "prob"}


@pytest.mark.parametrize(
    ("options", "layer", "since"),
    [
        (
            {"lrn": lambda h: __import__("chainer").functions.local_response_normalization(h)},
            "pool1",
            ("relu1", "norm1"),
        ),
        ({"eps": 2e-1}, "scale2", ("bn2",)),
        ({"lrn": lambda h: h}, "pool1", ("relu1", "norm1")),
    ],
)
def test_what_computes_something_else_is_named(options: Any, layer: str, since: tuple[str, ...]) -> None:
    net = nets.make(TEXT)
    report = bridge.verify(net, against=filled(net, **options), engines=["onnxruntime"])
    assert not report.passed
    first = report.first_difference
    assert first is not None
    assert (first.layer, first.since) == (layer, since)
    assert {difference.layer for difference in report.differences} == {layer}  # the rest is carried in by it


def test_another_stride_shows_in_the_shapes() -> None:
    from bridge.chain.functions import chainer

    net = nets.make(TEXT)
    chain = filled(net, conv2=chainer.links.Convolution2D(None, 4, 3, pad=1))
    with pytest.raises(UsageError, match="Model does not run on the net's inputs"):  # fc8 has the net's size
        bridge.verify(net, against=chain, engines=["onnxruntime"])


def test_a_method_of_a_chain_may_be_what_takes_the_inputs() -> None:
    net = nets.make(TEXT)
    chain = filled(net)
    chain.forward = lambda x, t: None
    with pytest.raises(UsageError, match="Model does not run on the net's inputs: TypeError"):
        bridge.verify(net, against=chain, engines=["onnxruntime"])
    report = bridge.verify(net, against=chain.scores, engines=["onnxruntime"])
    assert not report.differences
    assert report.outputs[0].b == "Model"


def test_a_chain_that_was_built_and_trained_is_compared_layer_by_layer() -> None:
    net = nets.make(TEXT)
    chain = bridge.build_chain(net)
    assert bridge.verify(net, against=chain, engines=["onnxruntime"]).passed
    chain.child("fc8").b.array[...] += 1
    report = bridge.verify(net, against=chain, engines=["onnxruntime"])
    assert [difference.layer for difference in report.differences] == ["fc8"]


def test_a_chain_without_names_in_common_is_matched_by_order() -> None:
    from bridge.chain.functions import F, chainer

    net = nets.make(TEXT)

    class Other(chainer.Chain):  # type: ignore[misc]
        def __init__(self) -> None:
            L = chainer.links
            super().__init__(
                d=L.Linear(None, 5), c=L.BatchNormalization(4, eps=1e-5), a=L.Convolution2D(None, 6, 3),
                b=L.Convolution2D(None, 4, 3),
            )  # fmt: skip

        def forward(self, x: Any) -> Any:
            h = F.local_response_normalization(F.relu(self.a(x)), 5, 1, 0.01 / 5, 0.75)
            return F.softmax(self.d(self.c(self.b(F.max_pooling_2d(h, 3, stride=2)))))

    chain = Other()
    bridge.transplant(net, chain, by="order", strict=True)
    assert bridge.verify(net, against=chain, engines=["onnxruntime"]).passed


def test_layers_without_a_link_are_told() -> None:
    net = nets.make(TEXT)
    chain = filled(net)
    chain.fc9 = chain.fc8
    report = bridge.verify(net, against=chain, engines=["onnxruntime"])
    assert report.passed
    more = net.with_layer(net["fc8"].changed(name="side", tops=["side"]))
    told = bridge.verify(more, against=chain, engines=["onnxruntime"], subset=True)
    assert "Model has no link for layer 'side'" in told.remarks


def test_a_net_stands_alone() -> None:
    net = nets.make(TEXT)
    with pytest.raises(UsageError, match="a net in memory is verified alone"):
        bridge.verify(net, "other.caffemodel")
    assert np.isfinite(net["fc8"].weight).all()
