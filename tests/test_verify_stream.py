"""Values are computed a few layers at a time, and freed when no later layer reads them; the verdict is the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.errors import ModelError
from bridge.verification import stream
from bridge.verification.outputs import Side, cut_short, engine_side
from bridge.verification.segments import Place, Runner, Segment
from bridge.verification.stream import StreamedValues, groups
from tests.conftest import need
from tests.nets import make, random_inputs

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "norm" type: "LRN" bottom: "conv" top: "norm" lrn_param { local_size: 3 } }
layer { name: "sum" type: "Eltwise" bottom: "norm" bottom: "conv" top: "sum" }
layer { name: "fc" type: "InnerProduct" bottom: "sum" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


class Recorder:
    """Runs layers in an engine, and remembers which, with how many values there were."""

    def __init__(self, net: Any, hidden: frozenset[Place] = frozenset(), broken: int = -1) -> None:
        self.runner, self.hidden, self.broken = Runner(net, "onnxruntime", {"threads": 1}), hidden, broken
        self.calls: list[int] = []
        self.most = 0

    def __call__(self, part: Segment, values: Mapping[Place, np.ndarray]) -> dict[Place, np.ndarray]:
        self.calls += part.layers
        self.most = max(self.most, len(values))
        if self.broken in part.layers:
            raise ModelError("no such kernel")
        return {place: array for place, array in self.runner.run(part, values).items() if place not in self.hidden}


def streamed(recorder: Recorder, net: Any) -> StreamedValues:
    inputs = {Place(-1, 0): random_inputs(net)["data"]}
    return StreamedValues(net, inputs, groups(net, random_inputs(net)), recorder)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime")
    monkeypatch.setattr(stream, "FREE", 0)


def test_small_layers_are_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make(NET)
    assert groups(net, random_inputs(net)) == [range(7)]
    monkeypatch.setattr(stream, "FREE", 2 * 4 * 64 * 4)  # of two values of 4 x 8 x 8
    assert groups(net, random_inputs(net)) == [range(2), range(2, 4), range(4, 7)]


@pytest.mark.usefixtures("one_by_one")
def test_a_value_is_freed_after_its_last_reader() -> None:
    net = make(NET)
    recorder = Recorder(net)
    values = streamed(recorder, net)
    assert [place.layer for place in values] == [-1, 1, 2, 3, 4, 5, 6]
    assert recorder.calls == [1, 2, 3, 4, 5, 6]
    assert recorder.most == 3  # before the sum: the input, and what it reads
    whole = engine_side("onnxruntime", net, random_inputs(net), {}).values
    np.testing.assert_allclose(values[Place(3, 0)], whole[Place(3, 0)], rtol=1e-5)  # computed again
    assert recorder.calls == [1, 2, 3, 4, 5, 6, 1, 2, 3]


@pytest.mark.usefixtures("one_by_one")
def test_what_hidden_values_are_computed_from_is_kept() -> None:
    net = make(NET)
    recorder = Recorder(net, hidden=frozenset({Place(5, 0)}))
    values = streamed(recorder, net)
    assert Place(5, 0) not in values
    assert values.get(Place(6, 0)) is None  # it cannot be run on what is not shown
    assert Place(4, 0) in values
    assert values[Place(4, 0)] is not None
    assert recorder.calls == [1, 2, 3, 4, 5]  # nothing was run twice


@pytest.mark.usefixtures("one_by_one")
def test_a_layer_that_cannot_be_run_ends_the_values_and_is_told() -> None:
    net = make(NET)
    values = streamed(Recorder(net, broken=4), net)
    assert Place(3, 0) in values
    assert Place(4, 0) not in values
    side = Side("onnxruntime", values)
    assert cut_short([side], ()) == ["onnxruntime did not run the net to its end: no such kernel"]
    with pytest.raises(ModelError):
        cut_short([side], ["onnxruntime"])


@pytest.mark.parametrize("fault", [False, True])
def test_the_verdict_is_that_of_the_whole_net(fault: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime", "chainer")
    net = make(NET)
    bridge.save(net, tmp_path / "a.npz")
    changed = net.with_blobs("fc", bias=np.full(5, 0.25, np.float32)) if fault else net
    bridge.export_onnx(changed, tmp_path / "b.onnx", check=False)
    options: dict[str, Any] = {"against": tmp_path / "b.onnx", "readers": (), "checks": (), "draws": 2}
    options["engines"] = ["onnxruntime", "chainer"]
    whole = bridge.verify(tmp_path / "a.npz", **options)
    monkeypatch.setattr(stream, "FREE", 0)
    found = bridge.verify(tmp_path / "a.npz", **options)
    for one, other in zip(whole.outputs, found.outputs, strict=True):
        assert [(top.layer, top.status) for top in one.tops] == [(top.layer, top.status) for top in other.tops]
    assert found.status == whole.status == int(fault)
    assert (found.first_difference is not None) == fault
    if found.first_difference is not None:
        assert found.first_difference.layer == "fc"
