"""Graphs that other tools made from an export: sound ones pass, other inputs fail and are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.exporting import export_onnx
from tests.conftest import need
from tests.test_verify_parts import saved, verified

pytestmark = pytest.mark.process


def changed(folder: Path, change: Callable[[Any], Any], **options: Any) -> tuple[Path, Path]:
    """A net, and its export after a change."""
    need("onnxruntime", "onnx")
    import onnx

    source = saved(folder, "net.npz")
    export_onnx(bridge.load(source), folder / "net.onnx", check=False, **options)
    model = onnx.load(str(folder / "net.onnx"))
    onnx.save(change(model) or model, str(folder / "changed.onnx"))
    return source, folder / "changed.onnx"


def extent(axis: int, value: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = value

    return change


def another_name(model: Any) -> None:
    model.graph.input[0].name = "picture"
    for node in model.graph.node:
        node.input[:] = ["picture" if name == "data" else name for name in node.input]


def another_type(model: Any) -> None:
    import onnx

    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    cast = onnx.helper.make_node("Cast", ["data"], ["narrow"], to=onnx.TensorProto.FLOAT)
    for node in model.graph.node:
        node.input[:] = ["narrow" if name == "data" else name for name in node.input]
    model.graph.node.insert(0, cast)


def one_more(model: Any) -> None:
    import onnx

    model.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, [1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (extent(2, 7), "input 'data' differs: its extents are 2 x 3 x 6 x 6 against"),
        (extent(1, 1), "; --input data=2,1,6,6 compares at those"),
        (extent(0, 5), "input 'data' differs: its extents are 2 x 3 x 6 x 6 against 5 x 3 x 6 x 6"),
        (another_name, "calls it 'picture'"),
        (another_type, "its type is float64 in"),
        (one_more, "input 'mask' differs: only"),
    ],
)
def test_an_input_that_is_declared_otherwise_is_a_difference(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    source, graph = changed(tmp_path, change, dynamic_batch=False)
    report = verified(source, against=graph)
    assert report.status == 1, str(report)
    assert any(message in str(difference) for difference in report.differences), str(report)
    assert not report.undone


def test_an_input_of_another_name_is_fed_all_the_same(tmp_path: Path) -> None:
    source, graph = changed(tmp_path, another_name)
    assert verified(source, against=graph, subset=True).passed
    report = verified(source, against=graph)
    assert report.outputs[-1].count("same"), "the outputs were compared"


def test_extents_that_are_asked_for_are_no_difference(tmp_path: Path) -> None:
    source, graph = changed(tmp_path, lambda model: None, inputs={"data": [5, 3, 6, 6]}, dynamic_batch=False)
    assert "--input data=5,3,6,6 compares at those" in str(verified(source, against=graph).differences[0])
    assert verified(source, against=graph, inputs={"data": (5, 3, 6, 6)}).passed


def names_of_values(model: Any) -> None:
    kept = {value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"
        for names in (node.input, node.output):
            names[:] = [name if name in kept or not name else f"v_{abs(hash(name))}" for name in names]


def weights_as_constants(model: Any) -> None:
    import onnx

    for tensor in model.graph.initializer:
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]


def a_later_opset(model: Any) -> Any:
    from onnx import version_converter

    return version_converter.convert_version(model, model.opset_import[0].version + 2)


def shapes_inferred(model: Any) -> Any:
    from onnx import shape_inference

    return shape_inference.infer_shapes(model)


def a_function(model: Any) -> None:
    import onnx

    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    opset = [onnx.helper.make_opsetid("", model.opset_import[0].version)]
    body = onnx.helper.make_node("Relu", ["x"], ["y"])
    model.functions.append(onnx.helper.make_function("own", "Act", ["x"], ["y"], [body], opset))
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    relu.op_type, relu.domain = "Act", "own"


def in_float16(model: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    del model.metadata_props[:]
    return convert_float_to_float16(model, keep_io_types=True)


@pytest.mark.parametrize(
    "change", [names_of_values, weights_as_constants, a_later_opset, shapes_inferred, a_function, in_float16]
)
def test_a_sound_graph_that_another_tool_wrote_passes(change: Callable[[Any], Any], tmp_path: Path) -> None:
    report = verified(*changed(tmp_path, change)[:1], against=tmp_path / "changed.onnx")
    assert report.passed, str(report)
    assert ("float16" in str(report)) == (change is in_float16)


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"])
def test_a_graph_that_onnx_runtime_optimised_passes(level: str, tmp_path: Path) -> None:
    source, graph = changed(tmp_path, lambda model: None)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    report = verified(source, against=tmp_path / "optimised.onnx")
    assert report.passed, str(report)


def test_a_fault_in_a_float16_graph_of_another_tool_is_found(tmp_path: Path) -> None:
    def change(model: Any) -> Any:
        import onnx

        made = in_float16(model)
        tensor = next(tensor for tensor in made.graph.initializer if tensor.name.startswith("fc.weight"))
        values = np.array(onnx.numpy_helper.to_array(tensor))
        values[0] = -values[0]
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return made

    source, graph = changed(tmp_path, change)
    assert verified(source, against=graph).first_difference is not None
