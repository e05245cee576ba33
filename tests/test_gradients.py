"""Every layer's backward pass through Chainer: the real Caffe's, as recorded, and the forward pass's derivative."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import bridge
from bridge.errors import UnsupportedLayerError
from bridge.layers import REGISTRY
from bridge.schema import Layer
from bridge.testing import LayerCase
from tests.conftest import FIXTURES, GOLDEN, need
from tests.strategies import CASES

ROLES = {"top", "bottom", "blob"}
CAFFES_OWN = {
    "mvn_eps": "Caffe leaves eps out of the derivative of MVN's deviation, which shows where eps is large",
    "pool_max_sparse": "Caffe adds the gradient of an empty window to the value in front of the plane",
}
"""Cases in which Caffe's backward pass is not the derivative of its forward pass."""


def recorded() -> dict[str, dict[str, np.ndarray]]:
    """Case -> ``top:BLOB``, ``bottom:BLOB`` or ``blob:LAYER:INDEX`` -> differences."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(FIXTURES / "gradients.npz") as file:
        for key in file:
            case, _, name = key.partition("/")
            found.setdefault(case, {})[name] = file[key]
    return found


RECORDED = recorded()


def gradients(case: str) -> dict[str, Any]:
    """Our own, under the same names."""
    from bridge.chain.build import build_chain
    from bridge.chain.functions import chainer

    folder = FIXTURES / "golden" / case
    net = bridge.load(folder / "deploy.prototxt", folder / "weights.caffemodel")
    with np.load(folder / "io.npz") as file:
        inputs = {key[3:]: chainer.Variable(file[key]) for key in file if key.startswith("in:")}
    chain = build_chain(net)
    with chainer.using_config("train", False):
        values = chain.run(inputs)
        tops = {name[4:]: diff for name, diff in RECORDED[case].items() if name.startswith("top:")}
        for name, diff in tops.items():
            values[name].grad = diff
        chainer.backward([values[name] for name in tops])
    found = {f"bottom:{name}": variable.grad for name, variable in inputs.items()}
    for index, layer in enumerate(net.layers):
        for place, role in enumerate(layer.blobs):
            found[f"blob:{layer.name}:{place}"] = getattr(chain.array(index, role), "grad", None)
    return found


@pytest.mark.parametrize("case", sorted(RECORDED.keys() - CAFFES_OWN.keys()))
def test_gradient_is_what_caffe_recorded(case: str) -> None:
    need("chainer")
    if not any(name.startswith("top:") for name in RECORDED[case]):
        assert case == "silence"
        return
    ours = gradients(case)
    for name, expected in RECORDED[case].items():
        if name.startswith("top:") or name == "bottom:cont":  # Caffe has no gradient of LSTM's and RNN's flags
            continue
        mine = np.zeros_like(expected) if ours[name] is None else ours[name]
        np.testing.assert_allclose(mine, expected, 1e-4, 1e-4 * max(1, np.abs(expected).max()), err_msg=name)


def test_nearly_every_case_has_gradients() -> None:
    assert len(RECORDED) >= 0.7 * len(GOLDEN)
    assert all(name.split(":")[0] in ROLES for diffs in RECORDED.values() for name in diffs)


# ---- the derivative of the forward pass, in double precision ----------------------------------

CHOOSING: dict[str, set[int]] = {
    "BatchReindex": {1}, "Embed": {0}, "LSTM": {1}, "LSTMUnit": {2}, "PSROIPooling": {1}, "RNN": {1}, "ROIPooling": {1},
    "Upsample": {1},
}  # fmt: skip
"""Bottoms that choose or count: there is no derivative by them."""
IN_TRAINING = ["BN", "BatchNorm"]
"""Types that normalise by the batch's own statistics in training."""
WITHOUT = {
    "ArgMax", "ContinuationIndicator", "DetectionOutput", "DummyData", "Input", "PriorBox", "Proposal", "Silence",
    "Threshold", "rpn.proposal_layer.ProposalLayer",
}  # fmt: skip
"""Types whose tops do not depend on anything, or not smoothly."""
ROUNDING = {"ConvolutionRistretto", "FQConvolution", "FQInnerProduct", "FcRistretto"}
"""Types that round, and give the gradient as if they did not: it is not the derivative."""


def smooth(name: str, case: LayerCase) -> tuple[Any, dict[str, np.ndarray], list[str]]:
    """The chain and its inputs in double precision, off the kinks; and the inputs that there is a derivative by."""
    chain = bridge.build_chain(case.net())
    for link in chain.links():
        for key in link._params:
            getattr(link, key).array = getattr(link, key).array.astype(np.float64)
        for key in link._persistent:
            setattr(link, key, getattr(link, key).astype(np.float64))
    inputs = {key: values.astype(np.float64) for key, values in case.inputs().items()}
    chosen = {f"in{index}" for index in CHOOSING.get(name, ())}
    if name == "Filter":
        chosen.add(f"in{len(inputs) - 1}")
    if name in ("LSTM", "LSTMUnit", "RNN"):  # Caffe's gradient is the derivative where a sequence goes on or begins
        inputs.update({key: inputs[key].round() for key in chosen})
    if (
        "expose_hidden: true" in case.body
    ):  # Caffe carries no gradient to the states it is given, or from those it gives
        chosen.update(f"in{index}" for index in range(len(inputs) - (len(chain.net_outputs) - 1), len(inputs)))
    free = [key for key in inputs if key not in chosen]
    rng = np.random.default_rng(case.seed)
    for key in free:  # whole numbers are where ReLU, Clip and their like have kinks, and equal ones where maxima do
        inputs[key] = np.asarray(inputs[key] + rng.uniform(0.01, 0.09, inputs[key].shape))
    return chain, inputs, free


def check_derivative(name: str, case: LayerCase, train: bool) -> None:
    """Compare the backward pass with differences of the forward pass, along a random direction."""
    from bridge.chain.functions import chainer

    gradient_check = importlib.import_module("chainer.gradient_check")
    try:
        chain, inputs, free = smooth(name, case)
    except UnsupportedLayerError:
        return

    def forward(*values: Any) -> tuple[Any, ...]:
        found = chain.run({**inputs, **dict(zip(free, values, strict=True))})
        tops = chain.net_outputs[:1] if "expose_hidden: true" in case.body else chain.net_outputs
        return tuple(chainer.functions.identity(found[top]) for top in tops if top in found)

    with chainer.using_config("train", train):
        tops = forward(*(chainer.Variable(inputs[key]) for key in free))
        depends = [top.requires_grad for top in tops]
        if not any(depends) or any(not (np.abs(top.array) < 1e9).all() for top in tops):
            return  # constant; or with empty windows of a pooling, in which a difference would be lost
        rng = np.random.default_rng(case.seed)
        gradient_check.check_backward(
            lambda *values: tuple(top for top, does in zip(forward(*values), depends, strict=True) if does),
            tuple(inputs[key] for key in free),
            tuple(rng.standard_normal(top.shape) for top, does in zip(tops, depends, strict=True) if does),
            tuple(param for param in chain.params() if param.size),
            eps=1e-5, atol=1e-5, rtol=1e-4, dtype=np.float64,
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore:A batch with no more than one sample")
@pytest.mark.parametrize(
    ("name", "train"),
    [*((name, False) for name in sorted(CASES.keys() - WITHOUT - ROUNDING)), *((n, True) for n in IN_TRAINING)],
)
def test_gradient_is_the_derivative(name: str, train: bool) -> None:
    need("chainer")

    @settings(max_examples=20)
    @given(CASES[name])
    def check(case: LayerCase) -> None:
        check_derivative(name, case, train)

    check()


def test_every_trainable_type_is_checked() -> None:
    trainable = {
        name
        for name, cls in REGISTRY.items()
        if cls.to_chainer is not Layer.to_chainer and cls.roles is not REGISTRY["ReLU"].roles
    }
    assert trainable >= {"Convolution", "InnerProduct", "BatchNorm", "Scale", "LSTM", "Embed", "PReLU"}
    assert trainable <= CASES.keys() - WITHOUT
