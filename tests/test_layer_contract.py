"""What every registered layer type owes, whatever it computes."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from bridge import engines
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import BridgeError
from bridge.layers import REGISTRY
from bridge.layers.base import CaffeLayer, NeuronLayer
from bridge.layers.fork_training import ForkLoss
from bridge.schema import Layer
from bridge.testing import LayerCase, LayerContract
from tests.conftest import GOLDEN, need
from tests.strategies import CASES

RUNNABLE = sorted(name for name, cls in REGISTRY.items() if cls.to_onnx is not Layer.to_onnx)
TRAINABLE = sorted(name for name in RUNNABLE if REGISTRY[name].to_chainer is not Layer.to_chainer)
PLAIN = [
    name for name in TRAINABLE if issubclass(REGISTRY[name], NeuronLayer) and REGISTRY[name].roles is CaffeLayer.roles
]


def recorded_types() -> set[str]:
    return {
        str(layer.get("type"))
        for case in GOLDEN
        for layer in prototxt.parse_file(case / "deploy.prototxt").messages("layer")
    }


@pytest.mark.parametrize("name", RUNNABLE)
def test_has_a_strategy(name: str) -> None:
    assert name in CASES


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_is_documented_with_its_source(name: str) -> None:
    cls: type[CaffeLayer] = REGISTRY[name]
    assert "Source:" in (cls.__doc__ or "")


class _Contract(LayerContract):
    """The contract in an environment that may promise an engine."""

    def need(self, engine: str) -> None:
        need(engine)


for _name, _case in CASES.items():
    _title = "Test" + _name.replace(".", "_")
    globals()[_title] = type(_title, (_Contract,), {"case": _case, "__module__": __name__, "__doc__": _name})


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shape", [(), (0,)], ids=["a number", "nothing"])
def test_takes_the_smallest_inputs(name: str, shape: tuple[int, ...]) -> None:
    need("onnxruntime", "chainer")
    case = LayerCase(name, "clip_param { min: 0 max: 1 }" if name == "Clip" else "", (shape,))
    net, inputs = case.net(), case.inputs()
    with contextlib.suppress(BridgeError):
        net.infer()
        mine, other = (engines.make(engine, net).tops(inputs)[-1][0] for engine in ("onnxruntime", "chainer"))
        assert mine is not None
        assert other is not None
        np.testing.assert_allclose(mine, other, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(name for name, cls in REGISTRY.items() if issubclass(cls, ForkLoss)))
def test_a_loss_of_a_fork_takes_what_the_fork_gives_it(name: str) -> None:
    assert LayerCase(name, "", ((2, 3, 4),)).net().infer()[-1] == ((),)
    assert LayerCase(name, "", ((2, 3, 4), (5,), (6, 7))).net().infer()[-1] == ((),)


@pytest.mark.parametrize(("body", "expected"), [("", [-3, 6]), ("eltwise_param { coeff: 5 coeff: -1 }", [3, -6])])
def test_a_sum_in_place_loses_what_it_writes_over(body: str, expected: list[float]) -> None:
    """As the real Caffe was seen to do."""
    need("onnxruntime", "chainer")
    text = f"""
      layer {{ name: "in" type: "Input" top: "x" input_param {{ shape {{ dim: 2 }} }} }}
      layer {{ name: "p" type: "Power" bottom: "x" top: "y" }}
      layer {{ name: "e" type: "Eltwise" bottom: "y" bottom: "x" top: "y" {body} }}
    """
    net = assemble(None, prototxt.parse(text))
    for engine in ("onnxruntime", "chainer"):
        (found,) = engines.make(engine, net).tops({"x": np.array([-3, 6], np.float32)})[-1]
        np.testing.assert_array_equal(found, expected)
