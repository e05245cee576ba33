"""Nets that are changed, copied, pickled and compared in Python."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import ModelError, NotFoundError, UsageError
from tests import nets
from tests.conftest import FASHION

TEXT = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 5 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv" param { name: "w" } param { name: "b" }
  convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "twin" type: "Convolution" bottom: "conv" top: "twin" param { name: "w" } param { name: "b" }
  convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "fc8" type: "InnerProduct" bottom: "twin" top: "fc8" inner_product_param { num_output: 4 } }
layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }
"""


def fashion() -> bridge.Net:
    return bridge.load(FASHION / "deploy.prototxt", FASHION / "fashion_alexnet.caffemodel")


def test_a_head_gets_other_outputs_and_new_blobs() -> None:
    net = nets.make(TEXT)
    ten = net.with_head("fc8", 10, seed=0)
    assert ten["fc8"].weight.shape == (10, 2)
    assert ten["fc8"].bias.shape == (10,)
    assert ten["fc8"].weight.any()
    assert ten.infer()[-1] == ((1, 10),)
    assert ten["conv"] is net["conv"]
    assert net["fc8"].weight.shape == (4, 2)
    assert np.array_equal(ten["fc8"].weight, net.with_head("fc8", 10, seed=0)["fc8"].weight)
    assert not np.array_equal(ten["fc8"].weight, net.with_head("fc8", 10)["fc8"].weight)
    assert ten["fc8"].definition.messages("inner_product_param")[0].text("num_output") == "10"


def test_a_head_may_get_another_name() -> None:
    net = nets.make(TEXT).with_head("fc8", 3, "fc8_new")
    assert net.layer_names == ["x", "conv", "twin", "fc8_new", "prob"]
    assert net["fc8_new"].tops == ("fc8",)


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        (("fc9", 3), NotFoundError, "no layer 'fc9'"),
        (("prob", 3), UsageError, r"layer 'prob' \(Softmax\): has no num_output to change"),
        (("fc8", 3, "conv"), UsageError, "the net has a layer 'conv' already"),
        (("fc8", 0), ModelError, "fc8"),
    ],
)
def test_a_head_that_cannot_be_is_told(arguments: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        nets.make(TEXT).with_head(*arguments)


def test_a_layer_takes_the_place_of_the_one_of_its_name_or_stands_behind_its_bottoms() -> None:
    net = nets.make(TEXT)
    halved = net.with_layer(net["twin"].changed(stride=2))
    assert halved["twin"].blobs.blob("weight").origin is net["conv"].blobs.blob("weight").origin
    more = net.with_layer(net["prob"].changed(name="again", bottoms=["twin"], tops=["again"]))
    assert more.layer_names == ["x", "conv", "twin", "again", "fc8", "prob"]
    bare = net["fc8"].resized(3, "second").changed(tops=["second"])
    assert net.with_layer(bare)["second"].weight.shape == (3, 2)
    with pytest.raises(ModelError, match="layer 'fc8'"):
        net.with_layer(net["twin"].changed(pad=1)).infer()
    with pytest.raises(ModelError, match="the shape of 'nothing' is not known"):
        net.with_layer(bare.changed(bottoms=["nothing"]))


def test_copies_are_the_net_itself() -> None:
    net = nets.make(TEXT)
    assert copy.copy(net) is copy.deepcopy(net) is net
    assert copy.deepcopy([net["conv"], net["conv"].blobs.blob("weight")])[0] is net["conv"]


@pytest.mark.parametrize("make", [lambda: nets.make(TEXT), fashion])
def test_a_pickled_net_is_the_same(make: Any) -> None:
    net = make()
    net.flow  # noqa: B018  what is kept after the first use
    back = pickle.loads(pickle.dumps(net))
    assert not net.diff(back)
    assert str(back) == str(net)
    assert back.sources == net.sources
    assert [layer.definition for layer in back] == [layer.definition for layer in net]
    layer = pickle.loads(pickle.dumps(net.layers[1]))
    assert np.array_equal(layer.weight, net.layers[1].weight)


def test_shared_blobs_stay_shared_in_a_pickle() -> None:
    back = pickle.loads(pickle.dumps(nets.make(TEXT)))
    assert back["conv"].blobs.blob("weight").origin is back["twin"].blobs.blob("weight").origin


def test_a_pickled_report_says_the_same() -> None:
    report = bridge.verify(FASHION / "deploy.prototxt", FASHION / "fashion_alexnet.caffemodel", engines=())
    back = pickle.loads(pickle.dumps(report))
    assert back == report == copy.deepcopy(report)
    assert str(back) == str(report)


def test_a_diff_says_how_far_each_blob_moved() -> None:
    net = nets.make(TEXT)
    assert not net.diff(net)
    assert str(net.diff(net)) == "0 differ, 6 are the same"
    moved = net.with_blobs("fc8", bias=net["fc8"].bias * 1.5)
    found = net.diff(moved)
    assert [(blob.layer, blob.role) for blob in found.blobs] == [("fc8", "bias")]
    assert found.blobs[0].moved == pytest.approx(0.5)
    assert found.blobs[0].largest == pytest.approx(np.abs(net["fc8"].bias).max() / 2)
    assert "fc8    bias" in str(found)
    assert "50.00%" in str(found)
    assert found == net.diff(moved)


def test_a_diff_tells_what_only_one_net_has() -> None:
    net = nets.make(TEXT)
    found = net.diff(net.with_head("fc8", 10, "new"))
    assert [(blob.layer, blob.role, blob.detail) for blob in found.blobs] == [
        (name, role, f"only in the {which} net")
        for name, which in (("fc8", "first"), ("new", "second"))
        for role in ("weight", "bias")
    ]
    assert [blob.detail for blob in net.diff(net.with_head("fc8", 3)).blobs] == ["4 x 2 against 3 x 2", "4 against 3"]


def test_a_value_that_is_not_finite_on_one_side_is_infinitely_far() -> None:
    net = nets.make(TEXT)
    bias = net["fc8"].bias.copy()
    bias[0] = np.nan
    broken = net.with_blobs("fc8", bias=bias)
    assert net.diff(broken).blobs[0].largest == np.inf
    assert not broken.diff(broken.with_blobs("fc8", bias=bias))
