"""Every layer's backward pass through Chainer against the real Caffe's, as recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bridge
from tests.conftest import FIXTURES, GOLDEN, need

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
