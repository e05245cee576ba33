"""Weights on their way back from a chain that the user wrote and trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bridge
import bridge.caffe_files.assemble
import bridge.caffe_files.prototxt
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
    note = "eps is 2e-05 in the links and 1e-05 in the layers (bn); set link.eps = 1e-05 for the net's results"
    assert report.notes == (note,)
    assert str(report).endswith(f"\nnote: {note}")
    same = bridge.transplant(nets.make(NORMALISED), holder(bn=links().BatchNormalization(3, eps=1e-5)))
    assert not same.notes


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


# ---- sizes of the links, and nets without blobs ------------------------------------------------

HEADED = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 dim: 5 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv" convolution_param { num_output: 4 kernel_size: 3 group: 2 } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "fc8" type: "InnerProduct" bottom: "conv" top: "fc8" inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }
"""  # noqa: E501


def headed(outputs: int = 3, head: str = "head") -> Any:
    L = links()
    chain = holder(conv=L.Convolution2D(4, 4, 3, groups=2), bn=L.BatchNormalization(4, eps=1e-5))
    chain.add_link(head, L.Linear(36, outputs))
    return chain


def test_a_new_head_of_other_classes_comes_back_with_its_size() -> None:
    net, chain = nets.make(HEADED), headed()
    bridge.transplant(net, chain)
    back = bridge.from_chain(chain, net, rename={"fc8": "head"})
    assert back["fc8"].outputs == 3
    assert back["fc8"].attributes()["num_output"] == 3
    assert np.array_equal(back["fc8"].weight, chain.head.W.array)
    assert back["conv"].weight is net["conv"].weight
    assert back.infer()[-1] == ((1, 3),)
    assert back.notes[-1] == "layer 'fc8' (InnerProduct): 3 outputs, as its link has; 10 before"


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ('"Deconvolution" convolution_param { num_output: 4 kernel_size: 3 group: 2 }',
         lambda L: L.Deconvolution2D(4, 6, 3, groups=2)),
        ('"Convolution" convolution_param { num_output: 4 kernel_size: 3 group: 2 }',
         lambda L: L.Convolution2D(4, 6, 3)),
        ('"InnerProduct" inner_product_param { num_output: 4 transpose: true }', lambda L: L.Linear(100, 6)),
    ],
)  # fmt: skip
def test_sizes_of_other_kinds_of_layers_come_back(kind: str, make: Any) -> None:
    text = f'{HEADED.splitlines()[1]} layer {{ name: "l" type: {kind} bottom: "x" top: "l" }}'.replace(
        f" {kind.split(maxsplit=1)[1]} bottom", " bottom"
    )
    text = text[:-1] + kind.split(maxsplit=1)[1] + " }"
    net = nets.make(text)
    link = make(links())
    link.W.array[...] = 0
    back = bridge.from_chain(holder(l=link), net)
    assert back["l"].outputs == 6
    back.infer()
    assert all(not back["l"].blobs[role].any() for role in back["l"].blobs)


def test_a_net_without_blobs_gets_all_of_them() -> None:
    from bridge.chain.functions import chainer

    bare = bridge.caffe_files.assemble.assemble(None, bridge.caffe_files.prototxt.parse(HEADED))
    chain = headed(10, "fc8")
    chain.bn.avg_mean[...] = 1.5
    back = bridge.from_chain(chain, bare)
    assert all(layer.blobs for layer in back if layer.roles(0))
    x = np.random.default_rng(0).standard_normal((1, 4, 5, 5)).astype("f")
    with chainer.using_config("train", False):
        expected = chainer.functions.softmax(chain.fc8(chain.bn(chain.conv(x)))).array
        np.testing.assert_allclose(bridge.build_chain(back)(x).array, expected, rtol=1e-5)
    del chain.bn
    with pytest.raises(UsageError, match=r"layer 'bn' .*its blobs have no arrays in the chain"):
        bridge.from_chain(chain, bare)


def test_a_head_that_the_next_layer_cannot_take_is_refused() -> None:
    text = HEADED.replace('top: "prob"', 'top: "prob"') + (
        'layer { name: "last" type: "InnerProduct" bottom: "fc8" top: "last" inner_product_param { num_output: 2 } }'
    )
    net, chain = nets.make(text), headed(3, "fc8")
    chain.add_link("last", links().Linear(10, 2))
    with pytest.raises(ModelError, match="layer 'last'"):
        bridge.from_chain(chain, net)


def test_filling_a_link_of_open_size_draws_nothing() -> None:
    net = one(CONV, (6, 2, 3, 3), (6,))
    chain = holder(l=links().Convolution2D(None, 6, 3, groups=2))
    own, state = chain.l.W.initializer, np.random.get_state()[1].copy()
    bridge.transplant(net, chain)
    assert np.array_equal(np.random.get_state()[1], state)
    assert chain.l.W.initializer is own
