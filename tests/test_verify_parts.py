"""``bridge verify`` on what two sides have: inputs, outputs, layers, arrays; a graph that a runtime refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.exporting import export_onnx
from bridge.onnx_export.preprocess import Preprocess
from bridge.verification.report import Report
from tests.conftest import need
from tests.nets import make

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "relu" }
layer { name: "fc" type: "InnerProduct" bottom: "relu" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
layer { name: "norm" type: "Power" bottom: "conv" top: "norm" power_param { scale: 3 } }
"""
"""A net of two outputs, prob and norm."""


def saved(folder: Path, name: str, text: str = NET) -> Path:
    """The net with weights, as one file."""
    path = folder / name
    bridge.save(make(text), path)
    return path


def verified(path: Path, **options: Any) -> Report:
    return bridge.verify(path, engines=["onnxruntime"], readers=(), checks=(), **options)


def renamed(model: Any) -> None:
    model.graph.output[0].name = "fc"


def reversed_order(model: Any) -> None:
    values = list(model.graph.output)[::-1]
    del model.graph.output[:]
    model.graph.output.extend(values)


def removed(model: Any) -> None:
    del model.graph.output[1:]


def doubled_behind(model: Any) -> None:
    import onnx

    model.graph.node.append(onnx.helper.make_node("Add", ["prob", "prob"], ["twice"]))
    model.graph.output[[value.name for value in model.graph.output].index("prob")].name = "twice"


def another_type(model: Any) -> None:
    import onnx

    model.graph.node.append(onnx.helper.make_node("Cast", ["prob"], ["wide"], to=onnx.TensorProto.DOUBLE))
    model.graph.output[0].name = "wide"
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


def without_nodes(model: Any) -> None:
    del model.graph.node[:]


def unknown_operator(model: Any) -> None:
    model.graph.node[-1].op_type = "NoSuchOperator"


def made_twice(model: Any) -> None:
    model.graph.node.append(model.graph.node[-1])


def other_extents(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


FAULTS: list[tuple[Callable[[Any], None], str]] = [
    (renamed, "output 'prob' differs: only"),
    (reversed_order, "the order is"),
    (removed, "differs: only"),
    (doubled_behind, "output 'prob' differs: only"),
    (another_type, "output 'prob' differs: only"),
    (without_nodes, "graph differs"),
    (unknown_operator, "NoSuchOperator"),
    (made_twice, "graph differs"),
    (other_extents, "its extents are"),
]


@pytest.mark.process
@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_graph_is_also_what_it_declares(tmp_path: Path, fault: Callable[[Any], None], message: str) -> None:
    need("onnxruntime", "onnx")
    import onnx

    source = saved(tmp_path, "net.npz")
    export_onnx(bridge.load(source), tmp_path / "net.onnx", check=False)
    assert verified(source, against=tmp_path / "net.onnx").passed
    model = onnx.load(str(tmp_path / "net.onnx"))
    fault(model)
    onnx.save(model, str(tmp_path / "wrong.onnx"))
    report = verified(source, against=tmp_path / "wrong.onnx")
    assert report.status == 1
    assert any(message in str(difference) for difference in report.differences), str(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("dim: 6 dim: 6", "dim: 7 dim: 7"),
            "input 'data' differs: its extents are 2 x 3 x 6 x 6 against 2 x 3 x 7 x 7",
        ),
        (('top: "norm"', 'top: "other"'), "output 'other' differs: only"),
        (('name: "relu"', 'name: "act"'), "layer 'relu' differs: only"),
    ],
    ids=["extents", "output", "layer"],
)
def test_what_only_one_net_has_is_a_difference(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    pair = saved(
        tmp_path, "a.npz", NET.replace(NET.split("\n")[4] + "\n", "").replace('bottom: "fc" top', 'bottom: "relu" top')
    )
    other = saved(tmp_path, "b.npz", pair_text(change))
    report = bridge.verify(pair, against=other, engines=(), readers=(), checks=())
    assert any(message in str(difference) for difference in report.differences), str(report)
    names = [
        str(d) for d in bridge.verify(pair, against=other, engines=(), readers=(), checks=(), subset=True).differences
    ]
    assert not [name for name in names if "only" in name]


def pair_text(change: tuple[str, str]) -> str:
    """The net without its InnerProduct, changed."""
    return NET.replace(NET.split("\n")[4] + "\n", "").replace('bottom: "fc" top', 'bottom: "relu" top').replace(*change)


@pytest.mark.process
def test_a_scalar_output_is_a_scalar_in_a_graph_too(tmp_path: Path) -> None:
    need("onnxruntime", "onnx")
    source = saved(
        tmp_path,
        "net.npz",
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }'
        'layer { name: "sum" type: "Reduction" bottom: "x" top: "sum" }',
    )
    export_onnx(bridge.load(source), tmp_path / "net.onnx", check=False)
    assert verified(source, against=tmp_path / "net.onnx").status == 0


def test_the_batch_is_no_difference(tmp_path: Path) -> None:
    a, b = saved(tmp_path, "a.npz"), saved(tmp_path, "b.npz", NET.replace("dim: 2 dim: 3", "dim: 9 dim: 3"))
    assert not bridge.verify(a, against=b, engines=(), readers=(), checks=()).differences


@pytest.mark.parametrize(
    ("key", "status"), [("blob:cnov", 1), ("outs:prob", 1), ("prob", 1), ("label", 0), ("blob:conv", 0)]
)
def test_a_recorded_key_names_a_blob(tmp_path: Path, key: str, status: int) -> None:
    need("onnxruntime")
    source = saved(tmp_path, "net.npz")
    verified(source, record=tmp_path / "io.npz")
    with np.load(tmp_path / "io.npz") as archive:
        arrays = dict(archive)
    arrays[key] = arrays.pop("blob:conv")
    np.savez(tmp_path / "more.npz", **arrays)
    report = verified(source, recorded=tmp_path / "more.npz")
    assert report.status == status, str(report)
    assert (f"array '{key}' differs" in str(report)) == (status == 1)


def test_an_output_that_is_not_recorded_is_not_passed(tmp_path: Path) -> None:
    need("onnxruntime")
    source = saved(tmp_path, "net.npz")
    verified(source, record=tmp_path / "io.npz")
    with np.load(tmp_path / "io.npz") as archive:
        np.savez(tmp_path / "less.npz", **{key: archive[key] for key in archive if key != "out:norm"})
    report = verified(source, recorded=tmp_path / "less.npz")
    assert report.status == 2
    assert "output 'norm' not compared" in report.undone[0]


def test_arrays_that_no_blob_is_in_are_named(tmp_path: Path) -> None:
    source = saved(tmp_path, "net.npz")
    with np.load(source) as archive:
        np.savez(tmp_path / "more.npz", **archive, stray=np.zeros(3, np.float32))
    report = bridge.verify(tmp_path / "more.npz", against=source, engines=(), readers=(), checks=())
    assert "'stray'" in str(report)


@pytest.mark.process
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("mean", [[], [104, 117, 123], "image"], ids=["no mean", "channels", "image"])
def test_an_export_with_preprocessing_agrees_and_a_wrong_one_does_not(tmp_path: Path, mean: Any, half: bool) -> None:
    need("onnxruntime", "onnx")
    import onnx

    source = saved(tmp_path, "net.npz")
    values = np.arange(108, dtype=np.float32).reshape(3, 6, 6) if mean == "image" else np.asarray(mean, np.float32)
    preprocess = Preprocess(values, scale=1 / 64, swap_channels=True)
    export_onnx(bridge.load(source), tmp_path / "net.onnx", check=False, half=half, preprocess=preprocess)
    report = verified(source, against=tmp_path / "net.onnx")
    assert report.passed, str(report)
    assert "before its preprocessing" in str(report)
    model = onnx.load(str(tmp_path / "net.onnx"))
    next(node for node in model.graph.node if node.op_type == "Slice").input[3] = next(
        node for node in model.graph.node if node.op_type == "Slice"
    ).input[4]
    onnx.save(model, str(tmp_path / "wrong.onnx"))
    assert verified(source, against=tmp_path / "wrong.onnx").status == 1


@pytest.mark.process
def test_weights_of_a_float16_export_are_those_that_rounding_gives(tmp_path: Path) -> None:
    need("onnxruntime", "onnx")
    import onnx

    source = saved(tmp_path, "net.npz")
    export_onnx(bridge.load(source), tmp_path / "net.onnx", check=False, half=True)
    assert verified(source, against=tmp_path / "net.onnx").passed
    model = onnx.load(str(tmp_path / "net.onnx"))
    tensor = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16 and len(t.dims) > 1)
    values = np.array(onnx.numpy_helper.to_array(tensor))
    values.reshape(-1)[0] = np.nextafter(values.reshape(-1)[0], np.float16(100))
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(tmp_path / "wrong.onnx"))
    assert verified(source, against=tmp_path / "wrong.onnx").status == 1
