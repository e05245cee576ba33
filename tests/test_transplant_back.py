"""Weights on their way back from a chain that the user wrote and trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import ModelError, UsageError
from tests import nets
from tests.conftest import FASHION, need
from tests.test_transplant import CONV, LINKS, holder, links, one
from tests.test_transplant_names import nested, two


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


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
