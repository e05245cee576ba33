"""Losses of nets whose blobs are float16."""

from __future__ import annotations

import numpy as np
import pytest

import bridge
from tests import nets
from tests.conftest import need

TEXT = """
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 }} }} }}
layer {{ name: "t" type: "Input" top: "t" input_param {{ shape {{ dim: 2 {more} }} }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param {{ num_output: 4 }} }}
layer {{ name: "loss" type: "{kind}" bottom: "y" bottom: "t" top: "loss" }}
"""


@pytest.mark.parametrize(("kind", "smoothing"), [("EuclideanLoss", 0.0), ("SoftmaxWithLoss", 0.1)])
def test_a_loss_of_half_precision_blobs_is_that_of_single_ones(kind: str, smoothing: float) -> None:
    need("chainer")
    from bridge.finetuning.objective import Objective

    regression = kind == "EuclideanLoss"
    net = nets.make(TEXT.format(kind=kind, more="dim: 4" if regression else ""))
    target = np.float32(np.arange(8).reshape(2, 4) / 8) if regression else np.float32([0, 3])
    objective = Objective("x", "t", {"loss": 1.0}, None if regression else "y", 4, smoothing)
    losses, gradients = [], []
    for dtype in ("f4", "f2"):
        chain = bridge.build_chain(net)
        for param in chain.params():
            param.array = param.array.astype(dtype)
        loss = objective(chain.run({"x": np.ones((2, 3), dtype), "t": target}))
        chain.cleargrads()
        loss.backward()
        losses.append(float(loss.array))
        gradients.append(chain.child("ip").W.grad)
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert gradients[1].dtype == np.float16
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-2, atol=1e-3)
