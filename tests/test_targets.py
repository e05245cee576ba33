"""Models for one runtime: bridge export --target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge import engines
from bridge.cli import main
from bridge.cli.export import export as export_command
from bridge.errors import UnsupportedLayerError, UsageError
from bridge.exporting.targets import TARGETS
from tests.conftest import ROOT, need
from tests.nets import make, random_inputs
from tests.test_detections import files
from tests.test_fork_nets import POOLING, REGIONS

PAGE = (ROOT / "docs" / "export.md").read_text()


def test_the_command_has_the_targets_of_the_table() -> None:
    (option,) = (option for option in export_command.params if option.name == "target")
    assert list(option.type.choices) == list(TARGETS)  # type: ignore[attr-defined]


def test_opencv4_gets_all_boxes_and_the_lines_of_the_page_choose(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    need("onnxruntime", "chainer")
    import onnx
    import onnxruntime as ort

    names = files(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["export", *names, "-o", str(tmp_path / "m.onnx"), "--target", "opencv4"])
    assert not ended.value.code
    assert "OpenCV 4 cannot suppress boxes" in capfd.readouterr().err
    model = onnx.load(tmp_path / "m.onnx")
    assert not {node.op_type for node in model.graph.node} & TARGETS["opencv4"].lacks
    assert all(extent.dim_value for extent in model.graph.input[0].type.tensor_type.shape.dim)
    net = bridge.load(*names)
    inputs = random_inputs(net)
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    boxes, scores = session.run(["rows_boxes", "rows_scores"], inputs)
    code = PAGE.split("<!-- suppression -->\n```python\n")[1].split("```")[0]
    assert "= 0.01, 0.45, 400, 200" in code
    code = code.replace("= 0.01, 0.45, 400, 200", "= 0.3, 0.45, 20, 50")
    known = {"boxes": boxes[0], "scores": scores[0], "np": np}
    exec(code, known)
    expected = engines.make("onnxruntime", net).outputs(inputs)["rows"][0, 0]
    found = np.array(known["rows"])
    assert len(found) == len(expected) > 10
    order = np.argsort(-expected[:, 2], kind="stable")
    np.testing.assert_allclose(found, expected[order][:, 1:], 1e-5, 1e-6)


def test_a_target_refuses_what_it_lacks_and_says_what_lies_before_it(tmp_path: Path) -> None:
    need("onnxruntime")
    net = make(REGIONS.format(pooling=POOLING[8]))
    with pytest.raises(UnsupportedLayerError, match=r"OpenCV 4 cannot run the model: layer 'proposal' .* NonMax"):
        bridge.export_onnx(net, tmp_path / "m.onnx", target="opencv4", check=False)
    assert not list(tmp_path.iterdir())
    bridge.export_onnx(net, tmp_path / "m.onnx", target="openvino", check=False)
    with pytest.raises(UsageError, match="no target 'cntk'"):
        bridge.export_onnx(net, tmp_path / "m.onnx", target="cntk")


YOLO = """
layer {{ name: "a" type: "Input" top: "a" input_param {{ shape {{ dim: 1 dim: {channels} dim: 4 dim: 4 }} }} }}
layer {{ name: "rows" type: "{kind}" bottom: "a" top: "rows" {parameter} {{ num_classes: 2 num_box: 3 {more}
  confidence_threshold: 0.3 nms_threshold: 0.45 biases: 1 biases: 2 biases: 3 biases: 4 biases: 5 biases: 6 }} }}
"""


@pytest.mark.parametrize(
    ("kind", "parameter", "more"),
    [
        ("YoloDetectionOutput", "yolo_detection_output_param", ""),
        (
            "Yolov3DetectionOutput",
            "yolov3_detection_output_param",
            "mask_group_num: 1 anchors_scale: 8 mask: 0 mask: 1 mask: 2",
        ),
    ],
)
def test_the_boxes_of_yolo_are_chosen_as_opencv_5_can(tmp_path: Path, kind: str, parameter: str, more: str) -> None:
    """It has no Compress, takes no bound of scores below 0, and dies of an empty index."""
    need("onnxruntime")
    import onnx
    import onnxruntime as ort

    net = make(YOLO.format(kind=kind, parameter=parameter, more=more, channels=21))
    bridge.export_onnx(net, tmp_path / "m.onnx", target="opencv5", check=False)
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert "Compress" not in {node.op_type for node in graph.node}
    (suppression,) = (node for node in graph.node if node.op_type == "NonMaxSuppression")
    bound = next(onnx.numpy_helper.to_array(init) for init in graph.initializer if init.name == suppression.input[4])
    assert bound > 0
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    nothing = session.run(None, {"a": np.full((1, 21, 4, 4), -9, np.float32)})[0]
    assert nothing.tolist() == [[[[0, -1, -1, -1, -1, -1, -1]]]]


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        ('type: "Pooling" top: "y" top: "mask" pooling_param { kernel_size: 2 }', "MaxPool with Indices"),
        ('type: "ArgMax" top: "y" argmax_param { top_k: 4000 }', "TopK of 3840 or more"),
    ],
)
def test_tensorrt_is_refused_what_its_list_has_not(tmp_path: Path, layer: str, problem: str) -> None:
    text = 'input: "x" input_dim: 1 input_dim: 1 input_dim: 80 input_dim: 80 layer { name: "l" bottom: "x" %s }'
    with pytest.raises(UnsupportedLayerError, match=f"TensorRT cannot run the model: layer 'l' .* needs {problem}"):
        bridge.export_onnx(make(text % layer), tmp_path / "m.onnx", target="tensorrt", check=False)


def test_tensorrt_takes_no_newer_operators(tmp_path: Path) -> None:
    net = make('input: "x" input_shape { dim: 4 } layer { name: "l" type: "ReLU" bottom: "x" top: "y" }')
    bridge.export_onnx(net, tmp_path / "m.onnx", target="tensorrt", opset=20, check=False)
    with pytest.raises(UsageError, match="at most 20 for TensorRT"):
        bridge.export_onnx(net, tmp_path / "m.onnx", target="tensorrt", opset=21, check=False)
