"""What every registered layer type owes, whatever it computes."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import engines
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import BridgeError
from bridge.layers import REGISTRY
from bridge.layers.base import CaffeLayer, NeuronLayer
from bridge.layers.fork_training import ForkLoss
from bridge.schema import Layer
from bridge.testing import LayerCase
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


@pytest.mark.parametrize("name", RUNNABLE)
@settings(max_examples=15)
@given(data=st.data())
def test_infers_the_shapes_that_come_out_and_engines_agree(name: str, data: st.DataObject) -> None:
    need("onnxruntime", "chainer")
    case = data.draw(CASES[name])
    net, inputs = case.net(), case.inputs()
    expected = net.infer()[-1]
    tops = engines.make("onnxruntime", net, threads=1).tops(inputs)[-1]
    found = tuple(top.shape for top in tops if top is not None)
    free = REGISTRY[name].data_dependent
    assert [_without(free, shape) for shape in found] == [_without(free, shape) for shape in expected]
    assert all(shape[axis] <= most[axis] for shape, most in zip(found, expected, strict=True) for axis in free)
    if name in TRAINABLE:
        others = engines.make("chainer", net).tops(inputs)[-1]
        for mine, other in zip(tops, others, strict=True):
            assert mine is not None
            assert other is not None
            np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4, err_msg=case.prototxt)


def _without(axes: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The extents that do not depend on values."""
    return tuple(extent for axis, extent in enumerate(shape) if axis not in axes)


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
