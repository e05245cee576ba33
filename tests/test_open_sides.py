"""Height and width of an exported model: open where the net allows it and where it costs little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge import engines
from bridge.cli import main
from bridge.onnx_export import graph as graph_module
from bridge.onnx_export import to_onnx_model
from tests.conftest import need
from tests.nets import make
from tests.test_detections import files
from tests.test_fork_nets import detector

CONV = """
input: "data" input_shape { dim: 1 dim: 3 dim: 12 dim: 14 }
layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 kernel_size: 3 } }
"""
FLAT = 'layer { name: "f" type: "InnerProduct" bottom: "c" top: "f" inner_product_param { num_output: 2 } }'


def inputs_of(text: str, **options: bool) -> list[object]:
    model, graph = to_onnx_model(make(text), **options)  # type: ignore[arg-type]
    assert not graph.notes
    return [
        extent.dim_param or extent.dim_value for extent in model.graph.input[0].type.tensor_type.shape.dim
    ]  # fmt: skip


def test_sides_are_open_where_the_net_allows_it() -> None:
    assert inputs_of(CONV) == ["batch", 3, "height", "width"]
    assert inputs_of(CONV, dynamic_sides=False) == ["batch", 3, 12, 14]
    assert inputs_of(CONV, dynamic_batch=False) == [1, 3, 12, 14]
    assert inputs_of(CONV + FLAT) == ["batch", 3, 12, 14]


def test_an_image_smaller_than_the_kernel_fixes_its_side() -> None:
    short = CONV.replace("dim: 12", "dim: 2").replace("kernel_size: 3", "kernel_size: 3 stride: 2")
    assert inputs_of(short) == ["batch", 3, 2, "width"]


def test_images_of_two_sizes_have_names_of_their_own() -> None:
    other = CONV.replace('"data"', '"small"').replace('"c"', '"d"').replace("dim: 12", "dim: 8")
    _, graph = to_onnx_model(make(CONV + other))
    assert graph.inputs["small"] == ["batch", 3, "small_height", "small_width"]
    assert graph.inputs["data"] == ["batch", 3, "data_height", "data_width"]


def test_sides_that_cost_time_stay_fixed_and_a_line_says_how_to_open_them() -> None:
    _, graph = to_onnx_model(detector(24, 32))
    assert graph.inputs["data"] == ["batch", 3, 24, 32]
    (note,) = graph.notes
    assert note.startswith("height and width are fixed: open, the model has ")
    assert note.endswith("; --input data=batch,3,height,width opens them")


def test_one_file_of_a_detector_serves_two_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime")
    import onnxruntime as ort

    monkeypatch.setattr(graph_module, "NODE", 0)
    net = bridge.load(*files(tmp_path, height=24, width=32))
    bridge.export_onnx(net, tmp_path / "m.onnx")
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for height, width in ((24, 32), (40, 24)):
        x = np.random.default_rng(height).standard_normal((1, 3, height, width)).astype(np.float32)
        (rows,) = session.run(None, {"data": x})
        expected = engines.make("onnxruntime", detector(height, width)).outputs({"data": x})["rows"]
        np.testing.assert_allclose(rows, expected, 1e-4, 1e-5)


def test_static_fixes_all(tmp_path: Path) -> None:
    need("onnxruntime")
    import onnx

    with pytest.raises(SystemExit):
        main(["export", *files(tmp_path), "-o", str(tmp_path / "m.onnx"), "--static"])
    extents = onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [extent.dim_value for extent in extents] == [1, 3, 40, 48]
