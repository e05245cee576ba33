"""A net's blobs in a chain that the user wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.schema import Blob, Net, RawLayer, RawNet
from bridge.schema.groups import spread_groups
from tests.conftest import need


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


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


def bits(chain: Any) -> dict[str, bytes]:
    return {path: param.array.tobytes() for path, param in chain.namedparams() if param.array is not None}


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
