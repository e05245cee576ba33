"""The graph that is exported: no node too many, every shape written, float16, preprocessing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bridge
from bridge.caffe_files.assemble import assemble
from bridge.errors import BridgeError, UsageError
from bridge.onnx_export import to_onnx_model
from bridge.onnx_export.builder import GraphBuilder
from bridge.onnx_export.fold import _OPERATORS as FOLDED
from bridge.onnx_export.fuse import clean_up
from bridge.onnx_export.graph import _Lowering, lower
from bridge.onnx_export.preprocess import Preprocess
from bridge.schema import Net
from bridge.schema.message import Message
from tests.conftest import FASHION, need, zoo
from tests.encode import blob
from tests.nets import Session, make
from tests.test_golden import ZOO_MODELS, load
from tests.test_graphs import RUNNABLE

DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 7 } } }\n'
CONV = (
    'layer { name: "c" type: "Convolution" bottom: "data" top: "c" '
    "convolution_param { num_output: 4 kernel_size: 3 } }\n"
)
CASES = pytest.mark.parametrize("case", [*RUNNABLE, FASHION], ids=lambda path: path.name)
DIMS = Message(dim=[1, 2])
DATA_DEPENDENT = {"DetectionOutput", "Filter"}
"""Layer types whose values have extents that no file tells."""


def export(net: Net, path: Path, **options: Any) -> onnx.ModelProto:
    """The model, as it was written without a check of its numbers."""
    bridge.export_onnx(net, path, check=False, **options)
    return onnx.load(str(path))


def run(path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a written model, loaded as anybody would."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {v.name: inputs[v.name] for v in session.get_inputs()}), strict=True))


def kinds(net: Net, **options: Any) -> list[str]:
    return [node.op_type for node in to_onnx_model(net, **options)[0].graph.node]


# ---- as long as the net is -----------------------------------------------------------------------


@pytest.mark.slow
def test_many_layers_take_time_in_proportion() -> None:
    """Every layer has an input and an output of its own, and all have one name."""
    count = 12_000
    blobs = [Message(name="same", type="AbsVal", bottom=f"in{index}", top=f"out{index}") for index in range(count)]
    inputs = [
        Message(name="x", type="Input", top=f"in{index}", input_param=Message(shape=DIMS)) for index in range(count)
    ]
    net = assemble(None, Message(layer=[*inputs, *blobs]))
    start = time.process_time()
    graph = lower(net, opset=17)
    assert time.process_time() - start < 15
    assert list(graph.outputs) == [f"out{index}" for index in range(count)]


def test_many_values_are_named_in_time_in_proportion() -> None:
    lowering = _Lowering(Net("", ()), GraphBuilder(17), {}, {}, [], every_top=False)
    lowering.values = {f"blob{index}": f"value{index}" for index in range(60_000)}
    start = time.process_time()
    names = lowering._names({"blob0": "value0"})
    assert time.process_time() - start < 5
    assert names == {value: name for name, value in lowering.values.items()}


# ---- no node too many ----------------------------------------------------------------------------


def redundant(graph: onnx.GraphProto) -> list[str]:
    """What a graph could do without."""
    outputs = {value.name for value in graph.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    sources = {value.name for value in graph.input} | constants.keys() | outputs
    producers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    seen, found = set(), []
    for node in graph.node:
        before = producers.get(node.input[0]) if node.input else None
        alone = before is not None and uses[node.input[0]] == 1 and node.input[0] not in outputs
        key = (node.op_type, *node.input, *(attribute.SerializeToString() for attribute in node.attribute))
        if key in seen and outputs.isdisjoint(node.output):
            found.append(f"{node.name} is computed twice")
        seen.add(key)
        if node.op_type == "Identity" and not (node.output[0] in outputs and node.input[0] in sources):
            found.append(f"{node.name} does nothing")
        if alone and before.op_type == node.op_type and node.op_type in ("Cast", "Reshape", "Transpose"):
            found.append(f"{node.name} undoes {before.name}")
        if node.op_type in FOLDED and all(name in constants for name in node.input) and outputs.isdisjoint(node.output):
            found.append(f"{node.name} has constants only to read")
        if node.op_type == "Transpose" and node.input[0] in constants:
            found.append(f"{node.name} turns a constant")
        neutral = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1}.get(node.op_type)
        for name in node.input[1:]:
            if neutral is not None and name in constants and (numpy_helper.to_array(constants[name]) == neutral).all():
                found.append(f"{node.name} changes nothing")
    return found + [f"{name} is unused" for name in constants if not uses[name] and name not in outputs]


@pytest.mark.parametrize(
    ("other", "count"),
    [({}, 1), ({"domain": "org.weightbridge"}, 2), ({"outputs": 2}, 2), ({"axis": 1}, 2)],
    ids=["the same", "another domain", "more outputs", "another attribute"],
)
def test_only_nodes_that_are_the_same_are_merged(other: dict[str, Any], count: int) -> None:
    g = GraphBuilder(17)
    twins = [g.op("Split", "x", **options)[0] for options in ({}, other)]
    (end,) = g.op("Add", *twins)
    clean_up(g, {end})
    assert [node.op_type for node in g.nodes] == ["Split"] * count + ["Add"]
    assert len(set(g.nodes[-1].inputs)) == count


@pytest.mark.parametrize(
    ("first", "extents", "merged"),
    [
        (("Flatten", {}), [0, -1], True),  # a Flatten at axis 1, the default, keeps the first axis
        (("Flatten", {"axis": 1}), [0, -1], True),
        (("Flatten", {"axis": 2}), [0, -1], False),  # the 0 copies the product of two axes
        (("Flatten", {"axis": 2}), [6, -1], True),  # nothing is copied
        (("Reshape", [0, -1]), [0, 2, -1], True),
        (("Reshape", [6, -1]), [0, 2, -1], False),
        (("Reshape", [0, -1]), [0, 0], False),  # the second 0 copies what the first Reshape made
    ],
)
def test_a_reshape_reads_before_another_where_that_gives_the_same(first: Any, extents: list[int], merged: bool) -> None:
    g = GraphBuilder(17)
    operator, how = first
    (before,) = g.op(operator, "x", **how) if operator == "Flatten" else g.op(operator, "x", g.ints(how))
    (end,) = g.op("Reshape", before, g.ints(extents))
    clean_up(g, {end})
    assert [node.op_type for node in g.nodes] == ["Reshape"] if merged else [operator, "Reshape"]
    assert (g.nodes[-1].inputs[0] == "x") == merged


@CASES
def test_no_node_is_too_many(case: Path) -> None:
    assert redundant(to_onnx_model(load(case)[0])[0].graph) == []


@pytest.mark.zoo
@pytest.mark.parametrize("model", ZOO_MODELS)
def test_no_node_is_too_many_in_a_trained_model(model: str) -> None:
    assert redundant(to_onnx_model(load(zoo(model))[0])[0].graph) == []


BN = 'layer {{ name: "bn" type: "BatchNorm" bottom: "{0}" top: "{1}" }}\n'
SCALE = 'layer {{ name: "sc" type: "Scale" bottom: "{0}" top: "{1}" scale_param {{ bias_term: {2} }} }}\n'
BIAS = 'layer {{ name: "bi" type: "Bias" bottom: "{0}" top: "{1}" }}\n'
OTHER = 'layer { name: "o" type: "ReLU" bottom: "data" top: "o" }\n'


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (BN.format("c", "c") + SCALE.format("c", "c", "true"), ["BatchNormalization"]),
        (BN.format("c", "b") + SCALE.format("b", "s", "false"), ["BatchNormalization"]),
        (BN.format("c", "b") + OTHER + SCALE.format("b", "s", "true"), ["BatchNormalization", "Relu"]),
        (BN.format("c", "b") + BIAS.format("b", "s"), ["BatchNormalization"]),
        (BN.format("c", "b") + SCALE.format("b", "s", "false") + BIAS.format("s", "t"), ["BatchNormalization"]),
        # somebody else reads what the BatchNorm makes
        (
            BN.format("c", "b") + SCALE.format("b", "s", "true") + OTHER.replace("data", "b"),
            ["BatchNormalization", "Mul", "Add", "Relu"],
        ),
        # each has its own
        (
            BN.format("c", "b")
            + SCALE.format("b", "s", "true")
            + SCALE.format("s", "t", "true").replace('"sc"', '"s2"'),
            ["BatchNormalization", "Mul", "Add"],
        ),
    ],
    ids=["in place", "no shift", "not next", "Bias", "Scale and Bias", "read twice", "two Scales"],
)
def test_a_normalisation_and_its_scale_are_one_node(layers: str, expected: list[str]) -> None:
    net = make(DATA + CONV + layers)
    assert sorted(kinds(net)) == sorted(["Conv", *expected])
    need("onnxruntime", "chainer")
    from tests.test_graphs import agree

    agree(net)


def test_a_mask_stays_an_integer_on_its_way() -> None:
    net = make(
        DATA + 'layer { name: "p" type: "Pooling" bottom: "data" top: "p" top: "m" '
        "pooling_param { kernel_size: 2 stride: 2 } }\n"
        'layer { name: "u" type: "Upsample" bottom: "p" bottom: "m" top: "u" upsample_param { scale: 2 } }\n'
    )
    assert "Cast" not in kinds(net, dynamic_batch=False)
    need("onnxruntime", "chainer")
    from tests.test_graphs import agree

    agree(net)


# ---- shapes --------------------------------------------------------------------------------------


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int | str | None]]:
    """The extents of every value that has a type and a rank."""
    graph = model.graph
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if (shape := value.type.tensor_type.shape) is not None and value.type.tensor_type.HasField("shape")
    }


@CASES
def test_every_value_has_its_shape_in_the_file(case: Path, tmp_path: Path) -> None:
    net, inputs, recorded = load(case)
    model = export(net, tmp_path / "m.onnx", dynamic_batch=False)
    made = {name for node in model.graph.node for name in node.output if name}
    known = shapes_of(model)
    assert known.keys() >= made
    if not any(layer.type in DATA_DEPENDENT for layer in net.layers):
        assert all(type(extent) is int for shape in known.values() for extent in shape), known
        for name, array in {**inputs, **recorded}.items():
            assert known[name] == list(array.shape)


@CASES
def test_every_value_has_its_rank_in_the_file_where_the_batch_is_open(case: Path, tmp_path: Path) -> None:
    model = export(load(case)[0], tmp_path / "m.onnx", half=True)
    made = {name for node in model.graph.node for name in node.output if name}
    assert shapes_of(model).keys() >= made
    assert not [shape for shape in shapes_of(model).values() if any(str(extent).startswith("unk") for extent in shape)]


# ---- preprocessing -------------------------------------------------------------------------------

IMAGE = np.random.default_rng(5).uniform(0, 255, (3, 10, 9)).astype(np.float32)


def by_hand(x: np.ndarray, mean: np.ndarray | float, scale: float, bgr: bool) -> np.ndarray:
    return ((x[:, ::-1] if bgr else x) - mean) * np.float32(scale)


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("scale", [1, 0.017, -2])
@pytest.mark.parametrize("mean", ["none", "one", "channels", "image", "larger"])
def test_preprocessing_is_what_numpy_computes(mean: str, scale: float, bgr: bool) -> None:
    need("onnxruntime")
    given = {
        "none": np.zeros(0, np.float32), "one": np.float32([117]), "channels": np.float32([104, 117, 123]),
        "image": IMAGE[:, 2:8, 1:8], "larger": IMAGE,
    }[mean]  # fmt: skip
    wanted = {"none": 0, "channels": given.reshape(-1, 1, 1), "larger": IMAGE[:, 2:8, 1:8]}.get(mean, given)
    preprocess = Preprocess(given, scale, bgr)
    net = make(DATA + CONV)
    session = Session(net, preprocess=preprocess if preprocess else None)
    x = np.random.default_rng(0).uniform(0, 255, (4, 3, 6, 7)).astype(np.float32)
    expected = Session(net)({"data": by_hand(x, wanted, scale, bgr)})["c"]
    np.testing.assert_allclose(session({"data": x})["c"], expected, 1e-4, 1e-3)
    np.testing.assert_allclose(preprocess.apply(x), by_hand(x, wanted, scale, bgr), 1e-5)
    np.testing.assert_allclose(preprocess.undo(preprocess.apply(x)), x, 1e-4, 1e-3)


def test_a_mean_per_channel_goes_with_any_size_and_an_image_does_not() -> None:
    need("onnxruntime")
    net, extents = make(DATA + CONV), {"data": ["n", 3, "h", "w"]}
    session = Session(net, preprocess=Preprocess(np.float32([1, 2, 3])), inputs=extents)
    assert session.shapes()["data"] == ["n", 3, "h", "w"]
    with pytest.raises(UsageError, match="'h' cannot be left open"):
        to_onnx_model(net, preprocess=Preprocess(IMAGE), inputs=extents)


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (np.float32([1, 2]), "a mean of 2 does not fit an input of 3 channels"),
        (IMAGE[:1, :5], "a mean of 1 x 5 x 9 does not fit an input of 3 x 6 x 7"),
        (IMAGE[:2], "a mean of 2 x 10 x 9 does not fit"),
    ],
)
def test_a_mean_that_does_not_fit_is_refused(mean: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        to_onnx_model(make(DATA + CONV), preprocess=Preprocess(mean))


@pytest.mark.parametrize("values", [{"scale": 0.0}, {"scale": float("nan")}, {"mean": np.float32([np.inf])}])
def test_numbers_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="finite"):
        Preprocess(**values)


@pytest.mark.parametrize("channels", [1, 4])
def test_only_three_channels_can_be_turned_round(channels: int) -> None:
    data = DATA.replace("dim: 3", f"dim: {channels}")
    with pytest.raises(
        UsageError, match=f"input 'data' has {channels} channels, expected 3 to swap between RGB and BGR"
    ):
        to_onnx_model(make(data + CONV), preprocess=Preprocess(swap_channels=True))
    to_onnx_model(make(data + CONV), preprocess=Preprocess(scale=2))


def test_a_net_without_an_image_has_nothing_to_preprocess() -> None:
    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 } } }\n'
    net = make(text + 'layer { name: "r" type: "ReLU" bottom: "x" top: "r" }\n')
    with pytest.raises(UsageError, match="no input of four axes"):
        to_onnx_model(net, preprocess=Preprocess(scale=2.0))


@pytest.mark.parametrize("kind", ["binaryproto", "npy"])
def test_a_mean_image_is_read_from_a_file(kind: str, tmp_path: Path) -> None:
    from bridge.cli.options import mean

    path = tmp_path / f"mean.{kind}"
    if kind == "npy":
        np.save(path, IMAGE)
    else:
        path.write_bytes(blob(IMAGE[None], "packed", "legacy"))
    np.testing.assert_array_equal(mean(str(path)), IMAGE)


def test_a_mean_that_is_no_mean_is_an_error(tmp_path: Path) -> None:
    from bridge.cli.options import mean

    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY nonsense")
    (tmp_path / "bad.binaryproto").write_bytes(b"nonsense")
    for name in ("bad.npy", "bad.binaryproto", "absent.npy", "absent.binaryproto", "1,2,x"):
        with pytest.raises(BridgeError, match=name):
            mean(str(tmp_path / name))


# ---- opset and IR version ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opset", "version"), [(13, 7), (14, 7), (15, 8), (16, 8), (17, 8), (18, 8), (19, 9), (20, 9), (21, 10)]
)
def test_the_ir_version_is_the_lowest_that_the_opset_allows(opset: int, version: int) -> None:
    model, _ = to_onnx_model(make(DATA + CONV), opset=opset)
    assert (model.opset_import[0].version, model.ir_version) == (opset, version)


def test_the_default_is_what_runtimes_of_years_ago_load() -> None:
    model, _ = to_onnx_model(make(DATA + CONV))
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)


@pytest.mark.parametrize("opset", [12, 1000])
def test_an_opset_that_is_not_known_is_refused(opset: int) -> None:
    with pytest.raises(UsageError, match=rf"opset {opset} is outside 13 to \d+"):
        to_onnx_model(make(DATA + CONV), opset=opset)
