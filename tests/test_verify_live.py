"""A proof keeps few values in memory: bytes of live arrays, as tracemalloc counts them, against the largest layer."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files.inference import inference_net
from bridge.chain.libm import expf
from bridge.engines import make_partial
from bridge.engines.onnxruntime import RuntimeSession
from bridge.errors import BudgetError, FormatError
from bridge.limits import budget
from bridge.onnx_export import to_onnx_file
from bridge.verification import stream
from bridge.verification.compare import VALUES, Relative, metrics
from bridge.verification.exported import _Check
from bridge.verification.inputs import Recorded, check_shapes
from bridge.verification.outputs import recorded_side
from bridge.verification.segments import Place
from tests.conftest import need
from tests.nets import make, random_inputs

SIDE, CHANNELS, DEPTH = 160, 16, 8
ARRAY = 4 * CHANNELS * SIDE * SIDE
"""Bytes of one value; the largest layer reads one and writes one."""


def _net(kernel: int = 3, side: int = SIDE) -> Any:
    shape = f"shape {{ dim: 1 dim: {CHANNELS} dim: {side} dim: {side} }}"
    lines = [f'layer {{ name: "data" type: "Input" top: "data" input_param {{ {shape} }} }}']
    window = f"num_output: {CHANNELS} kernel_size: {kernel} pad: {kernel // 2}"
    bottom = "data"
    for index in range(DEPTH):
        kind, text = ("Convolution", f"convolution_param {{ {window} }}") if index % 2 == 0 else ("Sigmoid", "")
        lines.append(f'layer {{ name: "l{index}" type: "{kind}" bottom: "{bottom}" top: "l{index}" {text} }}')
        bottom = f"l{index}"
    net = make("\n".join(lines))
    for layer in list(net.layers):
        if layer.blobs:  # sums of about 1, so that values stay in the range of a sigmoid
            net = net.with_blobs(layer.name, weight=np.asarray(layer.weight) * np.float32(0.05))
    return net


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The packages, so that they do not count."""
    need("onnxruntime", "chainer")
    bridge.verify(_net(side=8), engines=["onnxruntime", "chainer"], checks=(), draws=1)
    bridge.export_onnx(_net(side=8), tmp_path_factory.mktemp("small") / "net.onnx")


@pytest.fixture
def peak(loaded: None) -> Iterator[Callable[[], int]]:
    """Counts the bytes at most since the last call, beyond those at the start."""
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    yield lambda: tracemalloc.get_traced_memory()[1] - start
    tracemalloc.stop()


@pytest.mark.slow
def test_verify_keeps_four_of_the_largest_layer(peak: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "FREE", 0)
    monkeypatch.setattr("bridge.chain.functions.convolution._MOST_COLUMNS", ARRAY // 4)
    report = bridge.verify(_net(), engines=["onnxruntime", "chainer"], checks=(), draws=1)
    assert report.passed, report
    assert peak() < 4 * 2 * ARRAY  # all values of both sides are 16


@pytest.mark.slow
def test_the_check_of_an_export_keeps_few_values_where_it_looks_at_each_layer(
    peak: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stream, "FREE", 0)
    monkeypatch.setattr("bridge.chain.functions.convolution._MOST_COLUMNS", ARRAY // 4)
    monkeypatch.setattr(_Check, "_agree", lambda *_: False)
    whole: list[int] = []
    compare = _Check._compare_layers

    def compared(self: Any, *args: Any) -> None:
        tracemalloc.reset_peak()
        compare(self, *args)
        whole.append(peak())

    monkeypatch.setattr(_Check, "_compare_layers", compared)
    bridge.export_onnx(_net(), tmp_path / "net.onnx", dynamic_batch=False)
    assert len(whole) == 1
    assert whole[0] < 5 * 2 * ARRAY + 12 * 8 * VALUES  # with the output of each side, and what is measured at once
    assert (tmp_path / "net.onnx").exists()


def test_columns_are_small_beside_what_they_are_made_of(peak: Callable[[], int], monkeypatch: Any) -> None:
    monkeypatch.setattr("bridge.chain.functions.convolution._MOST_COLUMNS", ARRAY // 4)
    net = inference_net(_net(kernel=7))
    engine, inputs = make_partial("chainer", net), random_inputs(net)
    before = peak()
    tracemalloc.reset_peak()
    engine.outputs(inputs)
    assert peak() - before < 4 * ARRAY  # the columns of one layer are 49


def test_exponentials_and_bounds_take_little_in_between(peak: Callable[[], int]) -> None:
    x = np.zeros(1 << 22, np.float32)
    for work, most in ((lambda: expf(x), 1.3), (lambda: metrics(x, x + 1, Relative(0, 0.5, x)), 2.2)):
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        work()
        assert tracemalloc.get_traced_memory()[1] - before < most * x.nbytes


def test_a_bound_made_in_parts_is_that_of_the_whole() -> None:
    expected = np.float32([[1, -2], [np.nan, np.inf]])
    bound = Relative(0.5, 0.25, expected)
    assert np.asarray(bound).tolist() == [[0.75, 1.25], [0, 0]]
    assert bound[1:3].tolist() == [1.25, 0]
    assert metrics(expected, expected + np.float32(1), bound).mismatches == 1


def test_an_output_that_is_an_input_is_not_taken_from_an_unwritten_array() -> None:
    need("onnxruntime")
    net = make(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }'
        'layer { name: "drop" type: "Dropout" bottom: "data" top: "drop" }'
    )
    file, graph = to_onnx_file(inference_net(net), dynamic_batch=False)
    x = random_inputs(net)["data"]
    (value,) = RuntimeSession(file)({"data": x}).values()
    np.testing.assert_array_equal(value, x)
    assert len(graph.outputs) == 1


# -- recorded arrays -------------------------------------------------------------------------------


def _recording(folder: Path, net: Any) -> Path:
    arrays = {f"blob:l{index}": np.zeros((1, CHANNELS, SIDE, SIDE), np.float32) for index in range(DEPTH)}
    np.savez_compressed(folder / "io.npz", **{"in:data": random_inputs(net)["data"], **arrays})  # type: ignore[arg-type]
    return folder / "io.npz"


def test_recorded_arrays_are_read_one_at_a_time(
    peak: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "FREE", 0)
    net = inference_net(_net())
    path = _recording(tmp_path, net)
    tracemalloc.reset_peak()
    before = peak()
    recorded = Recorded(path)
    side = recorded_side(recorded, net)
    assert {place for place in side.values if place.layer >= 0} == {Place(index, 0) for index in range(1, 1 + DEPTH)}
    assert sum(float(side.values[Place(index, 0)].sum()) for index in range(1, 1 + DEPTH)) == 0
    assert peak() - before < 7 * ARRAY  # the input, what is read and what is freed next; all are 9


def test_a_recorded_array_is_within_the_budget_before_it_is_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = inference_net(_net())
    recorded = Recorded(_recording(tmp_path, net))
    side = recorded_side(recorded, net)
    monkeypatch.setattr(budget.BUDGET, "_limit", budget.BUDGET.used + ARRAY // 2)
    with pytest.raises(BudgetError, match="array 'blob:l0': needs"):
        side.values[Place(1, 0)]


def test_a_damaged_recorded_array_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    net = inference_net(_net())
    path = _recording(tmp_path, net)
    data = bytearray(path.read_bytes())
    at = data.index(b"blob:l3.npy") + 60
    data[at : at + 16] = bytes(16)
    path.write_bytes(data)
    side = recorded_side(Recorded(path), net)
    with pytest.raises(FormatError, match="array 'blob:l3'"):
        side.values[Place(4, 0)]


def test_a_proof_asks_for_four_of_the_largest_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    net = _net()
    shapes = {"data": (1, CHANNELS, SIDE, SIDE)}
    monkeypatch.setattr(budget.BUDGET, "_limit", budget.BUDGET.used + 9 * ARRAY)
    check_shapes(net, shapes)  # all values together are 9
    monkeypatch.setattr(budget.BUDGET, "_limit", budget.BUDGET.used + 9 * ARRAY - 1)
    with pytest.raises(BudgetError, match="its blobs: needs"):
        check_shapes(net, shapes)
