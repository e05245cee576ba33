"""Detections: the last layer of a detector is compared, and its rows as detections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge import engines
from bridge.cli import main
from bridge.engines.pieces import PartialEngine
from bridge.layers.boxes import apart, united
from bridge.layers.detection_output import DetectionOutput
from bridge.schema.hooks import DetectionRows
from bridge.verification.detections import row_metrics
from bridge.verification.inputs import make_inputs
from bridge.verification.outputs import Comparison, engine_side, uncompared_outputs
from bridge.verification.results import DIFFERENT, SAME, SKIPPED, OutputsResult, TopResult
from bridge.verification.segments import Place, Runner
from bridge.verification.tolerance import Tolerances
from tests.conftest import need
from tests.nets import make, random_inputs
from tests.test_fork_nets import DETECTOR, REGIONS, detector

LAYOUT = DetectionRows(least=0.3, overlap=0.45, most=4)
ROWS = np.array(
    [
        [0, 1, 0.9, 0.1, 0.1, 0.5, 0.5],
        [0, 1, 0.8, 0.6, 0.6, 0.9, 0.9],
        [0, 2, 0.8, 0.1, 0.1, 0.4, 0.5],
    ],
    np.float32,
)
PADDING = np.zeros((2, 7), np.float32)
BOUND = 1e-6


def mismatches(a: np.ndarray, b: np.ndarray, bound: float = BOUND) -> int:
    return row_metrics(LAYOUT, a.reshape(1, 1, -1, 7), b.reshape(1, 1, -1, 7), bound).mismatches


def test_padding_and_order_do_not_count() -> None:
    none = np.array([[1, -1, -1, -1, -1, -1, -1]], np.float32)
    assert not mismatches(ROWS, np.concatenate([PADDING, none, ROWS[[2, 0, 1]]]))
    found = row_metrics(LAYOUT, ROWS[None, None], np.concatenate([ROWS, PADDING])[None, None], BOUND)
    assert found.rows.startswith("3 detections against 3")
    assert not mismatches(none, PADDING), "nothing was found on either side"


INFINITE = [-np.inf, -np.inf, np.inf, np.inf]


@pytest.mark.parametrize("box", [INFINITE, [-np.inf, 0, np.inf, 5], [-1e30, -1e30, 1e30, 1e30]])
def test_a_runtime_may_keep_or_drop_a_box_that_meets_another_infinite_one(box: list[float]) -> None:
    rows = np.array([[0, 1, 0.9, *box], [0, 1, 0.8, *box], *ROWS], np.float32)
    assert not mismatches(rows, rows[[0, 2, 3, 4]])
    assert not mismatches(rows[[0, 2, 3, 4]], rows)
    assert mismatches(rows, rows[2:]), "the best of them stays in every runtime"
    assert mismatches(rows[1:], rows[2:]), "no other infinite box explains it"


def test_a_box_without_a_side_meets_none() -> None:
    line, wide = np.float32([-np.inf, 0, np.inf, 0]), np.float32([-np.inf, -1, np.inf, 1])
    assert united(line, np.stack([line, wide])).tolist() == [0, 0], "as in JaccardOverlap of SSD"
    assert apart(np.stack([line, line, wide]), 0.45) == [0, 1, 2]
    assert np.isnan(united(wide, wide[None])).all()
    assert apart(np.stack([wide, wide]), 0.45) == [0], "SSD keeps a box whose overlap is at most the threshold"


@pytest.mark.parametrize("column", range(7))
@pytest.mark.parametrize("row", range(3))
def test_a_value_that_is_moved_is_found(row: int, column: int) -> None:
    moved = ROWS.copy()
    moved[row, column] += 4e-6
    assert mismatches(ROWS, moved)
    assert mismatches(moved, ROWS)


def test_a_row_on_one_side_is_found_unless_rounding_decides() -> None:
    assert mismatches(ROWS, ROWS[:2])
    assert mismatches(ROWS[1:], ROWS)
    found = row_metrics(LAYOUT, ROWS[None, None], ROWS[None, None, :2], BOUND)
    assert "the first side alone has image 0, label 2, score 0.8, box 0.1 0.1 0.4 0.5" in found.rows
    at_threshold = np.array([[0, 1, np.nextafter(np.float32(0.3), 1), 0.7, 0, 0.8, 0.1]], np.float32)
    assert not mismatches(np.concatenate([ROWS, at_threshold]), ROWS), "its score is the threshold's"
    far = at_threshold.copy()
    far[0, 2] = 0.31
    assert mismatches(np.concatenate([ROWS, far]), ROWS)


def test_an_overlap_that_is_just_allowed_excuses_a_row() -> None:
    box = np.array([[0, 1, 0.7, 0.1, 0.1, 0.1 + 0.4 * 0.45, 0.5]], np.float32)  # overlaps the first by 0.45
    assert not mismatches(np.concatenate([ROWS, box]), ROWS)
    other = box.copy()
    other[0, 5] -= 0.01
    assert mismatches(np.concatenate([ROWS, other]), ROWS)


def test_a_full_list_may_end_with_either_of_two_equal_rows() -> None:
    last = np.array([[0, 2, 0.5, 0, 0, 0.1, 0.1], [0, 1, 0.5, 0.9, 0, 1, 0.1]], np.float32)
    assert not mismatches(np.concatenate([ROWS, last[:1]]), np.concatenate([ROWS, last[1:]]))
    better = last.copy()
    better[1, 2] = 0.6
    assert mismatches(np.concatenate([ROWS, last[:1]]), np.concatenate([ROWS, better[1:]]))


# -- whole nets ----------------------------------------------------------------------------------


def files(folder: Path, text: str = DETECTOR, height: int = 40, width: int = 48) -> list[str]:
    """The small SSD as files."""
    folder.mkdir(exist_ok=True)
    bridge.save(detector(height, width), folder / "weights.caffemodel")
    (folder / "deploy.prototxt").write_text(text.format(height=height, width=width))
    return [str(folder / "deploy.prototxt"), str(folder / "weights.caffemodel")]


def test_every_top_of_a_detector_is_compared(tmp_path: Path) -> None:
    need("onnxruntime", "chainer")
    report = bridge.verify(*files(tmp_path), readers=(), engines=("onnxruntime", "chainer"))
    assert report.passed, str(report)
    assert [result.count(SKIPPED) for result in report.outputs] == [0]
    assert "chainer lacks layer 'rows' (DetectionOutput): NumPy computed" in str(report).replace("\n    ", " ")
    assert "matched in any" in str(report)


def test_a_layer_in_the_middle_is_computed_by_numpy_and_the_rest_by_the_engine() -> None:
    need("onnxruntime", "chainer")
    from tests.test_fork_nets import POOLING

    net = make(REGIONS.format(pooling=POOLING[8]))
    inputs = {**make_inputs(net, seed=0), "info": np.array([[80, 96, 1]], np.float32)}
    sides = [engine_side(name, net, inputs, {}) for name in ("onnxruntime", "chainer")]
    index = net.layer_names.index("proposal")
    assert sides[1].by_numpy == {index}
    runner = Runner(net, "onnxruntime", {})
    found = Comparison(net, runner, *sides, given=Tolerances(), isolate=False, seed=0).run()
    assert found.compared == len(found.tops) == 4
    assert not found.count(DIFFERENT), [str(top) for top in found.tops]


def test_what_numpy_computes_on_both_sides_is_not_compared() -> None:
    need("chainer")
    net = detector(24, 32)
    side = engine_side("chainer", net, random_inputs(net), {})
    compared = Comparison(
        net, Runner(net, "chainer", {}), side, side._replace(name="other"), given=Tolerances(), isolate=False, seed=0
    )
    last = compared.run().tops[-1]
    assert (last.status, last.why) == (SKIPPED, "NumPy computed it on both sides")


def test_what_lies_before_a_layer_that_an_engine_lacks_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime", "chainer")
    from bridge.schema import Layer

    monkeypatch.setattr(DetectionOutput, "to_numpy", Layer.to_numpy)
    net = detector(24, 32)
    engine = engines.make_partial("chainer", net)
    assert isinstance(engine, PartialEngine)
    side = engine_side("chainer", net, random_inputs(net), {})
    assert Place(len(net.layers) - 1, 0) not in side.values
    assert len(side.values) == len(net.layers) - 1, "the input and all but the last top"
    assert side.notes == ("engine chainer lacks layer 'rows' (DetectionOutput): not compared with it",)


def test_an_output_that_one_engine_lacks_is_enough_where_another_has_it() -> None:
    net = detector(24, 32)
    compared, lacking = (TopResult("rows", "DetectionOutput", "rows", status=status) for status in (SAME, SKIPPED))
    results = [
        OutputsResult("onnxruntime", "chainer", (compared,)),
        OutputsResult("onnxruntime", "pycaffe", (lacking,)),
    ]
    assert not uncompared_outputs(net, results)
    assert len(uncompared_outputs(net, results[1:])) == 1
    graph = OutputsResult("onnxruntime", "model.onnx", (lacking,))
    assert len(uncompared_outputs(net, [results[0], graph])) == 1, "a file has to have all outputs"


def test_a_recording_with_padding_passes_and_changed_variances_are_named(tmp_path: Path) -> None:
    need("onnxruntime")
    names = files(tmp_path)
    net = bridge.load(*names)
    inputs = random_inputs(net)
    tops = dict(zip(net.layer_names, engines.make("onnxruntime", net).tops(inputs), strict=True))
    rows = tops["rows"][0]
    assert rows is not None
    padded = np.concatenate([rows, np.zeros((1, 1, 50, 7), np.float32)], axis=2)
    last, every = tmp_path / "last.npz", tmp_path / "all.npz"
    np.savez(last, **{"in:data": inputs["data"], "out:rows": padded})
    np.savez(every, **{"in:data": inputs["data"], "out:rows": padded, "blob:priors": tops["priors"][0]})
    for recorded in (last, every):
        report = bridge.verify(*names, readers=(), engines=("onnxruntime",), recorded=recorded)
        assert report.passed, str(report)
    changed = files(tmp_path / "changed", DETECTOR.replace("variance: 0.1", "variance: 0.2"))
    report = bridge.verify(*changed, readers=(), engines=("onnxruntime",), recorded=last)
    assert not report.passed
    assert "9 layers from 'loc' on before it" in str(report.outputs[0].tops[-1])
    report = bridge.verify(*changed, readers=(), engines=("onnxruntime",), recorded=every)
    assert [top.layer for top in report.outputs[0].tops if top.status == DIFFERENT] == ["priors"]


def test_half_precision_tells_how_far_detections_are_apart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need("onnxruntime")
    with pytest.raises(SystemExit) as ended:
        main(["export", *files(tmp_path), "-o", str(tmp_path / "half.onnx"), "--fp16"])
    assert not ended.value.code
    said = capfd.readouterr().err
    assert "outputs differ from those in float32: 'rows' (" in said
    assert "in score" in said


def test_verify_compares_what_leads_to_selected_blobs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need("onnxruntime", "chainer")
    with pytest.raises(SystemExit) as ended:
        main(["verify", *files(tmp_path), "--readers", "none", "--draws", "1", "--output", "f1", "--output", "p2,f1"])
    assert not ended.value.code
    out = capfd.readouterr().out
    assert "5 tops" in out  # those that lead to the two
    assert "priors" not in out
    with pytest.raises(SystemExit) as ended:
        main(["verify", *files(tmp_path), "--output", "nothing"])
    assert ended.value.code == 2
    assert "nothing" in capfd.readouterr().err


def test_unlimited_rows_are_matched_in_reasonable_time() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.zeros((4000, 2)), rng.uniform(0.4, 1, (4000, 5))], axis=1).astype(np.float32)
    order = np.argsort(-rows[:, 2])
    layout = replace(LAYOUT, most=-1)
    a, b = rows[order][None, None], rows[order][None, None] + np.float32(1e-7) * np.eye(7, dtype=np.float32)[2]
    assert not row_metrics(layout, a, b, 1e-6).mismatches
