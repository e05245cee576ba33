"""Graphs of every form: names, wiring, open extents, operator sets; in both engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bridge import engines
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import UnsupportedLayerError, UsageError
from bridge.onnx_export import to_onnx_model
from bridge.onnx_export.model import newest_opset
from bridge.schema import Net, RawNet
from tests.conftest import GOLDEN, need
from tests.nets import Session, make, random_inputs
from tests.test_golden import load

pytestmark = pytest.mark.usefixtures("_runtimes")

DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 7 } } }\n'
CONV = 'type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 pad: 1 }'
NAMES = [
    "conv1/3x3_s2", "a:b", "with space", "Schicht ä", "层/一:0", "params", "links", "0", "x.weight", "_own", "a%2Fb",
]  # fmt: skip


RUNNABLE = [case for case in GOLDEN if any(name.startswith("out:") for name in np.load(case / "io.npz").files)]
"""Cases with an output: no runtime loads a graph without one."""
RECORDED = pytest.mark.parametrize("case", RUNNABLE, ids=lambda path: path.name)


@pytest.fixture
def _runtimes() -> None:
    need("onnxruntime", "chainer")


def agree(net: Net) -> dict[str, np.ndarray]:
    """Run the net in both engines, top by top, and give its outputs."""
    inputs = random_inputs(net)
    runners = [engines.make("onnxruntime", net, threads=1), engines.make("chainer", net)]
    for layer, mine, theirs in zip(net.layers, *(runner.tops(inputs) for runner in runners), strict=True):
        for name, a, b in zip(layer.tops, mine, theirs, strict=True):
            assert a is not None
            assert b is not None
            np.testing.assert_allclose(a, b, 1e-4, 1e-5, err_msg=f"{layer.label}: {name}")
    outputs, others = (runner.outputs(inputs) for runner in runners)
    assert set(outputs) == set(others) == set(net.outputs)
    for name, values in outputs.items():
        np.testing.assert_allclose(values, others[name], 1e-4, 1e-5, err_msg=name)
    return outputs


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_any_name_survives(name: str) -> None:
    net = make(
        DATA + f'layer {{ name: "{name}" bottom: "data" top: "{name}" {CONV} }}\n'
        f'layer {{ name: "{name}/bn" type: "BatchNorm" bottom: "{name}" top: "{name}" }}\n'
        f'layer {{ name: "{name}/fc" type: "InnerProduct" bottom: "{name}" top: "{name}/out" '
        "inner_product_param { num_output: 2 } }\n"
    )
    assert list(agree(net)) == [f"{name}/out"]
    assert {name, f"{name}/out"} <= Session(net).named()


def test_blob_names_win_over_names_that_the_exporter_makes() -> None:
    net = make(
        DATA + f'layer {{ name: "c" bottom: "data" top: "c/Relu" {CONV} }}\n'
        'layer { name: "e" type: "ReLU" bottom: "c/Relu" top: "c.weight" }\n'
        'layer { name: "d" type: "Power" bottom: "c.weight" top: "c/Conv" power_param { scale: 2 shift: 1 } }\n'
    )
    assert list(agree(net)) == ["c/Conv"]
    assert {"c/Relu", "c.weight", "c/Conv"} <= Session(net).named()


def test_two_layers_of_one_name_keep_their_own_values() -> None:
    text = "".join(
        f'layer {{ name: "same" type: "Power" bottom: "{a}" top: "{b}" power_param {{ shift: {n} }} }}\n'
        for n, (a, b) in enumerate([("data", "x"), ("x", "y"), ("y", "z")], 1)
    )
    net = make(DATA + text)
    np.testing.assert_allclose(agree(net)["z"], random_inputs(net)["data"] + 6, rtol=1e-6)


# ---- in place ----------------------------------------------------------------------------------


def test_of_layers_in_place_the_last_has_the_name() -> None:
    net = make(
        DATA + f'layer {{ name: "c" bottom: "data" top: "c" {CONV} }}\n'
        'layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" }\n'
        'layer { name: "sc" type: "Scale" bottom: "c" top: "c" scale_param { bias_term: true } }\n'
        'layer { name: "r" type: "ReLU" bottom: "c" top: "c" }\n'
        'layer { name: "d" type: "Dropout" bottom: "c" top: "c" }\n'
        'layer { name: "p" type: "Power" bottom: "c" top: "p" power_param { scale: 3 } }\n'
    )
    agree(net)
    nodes = [(node.op_type, list(node.output)) for node in Session(net).model.graph.node]
    assert ("Relu", ["c"]) in nodes
    assert [kind for kind, _ in nodes] == ["Conv", "BatchNormalization", "Relu", "Mul"]


def test_an_input_that_is_written_in_place_keeps_its_name_as_an_input() -> None:
    net = make(
        DATA + 'layer { name: "n" type: "Power" bottom: "data" top: "data" power_param { scale: 0.5 shift: -1 } }\n'
        f'layer {{ name: "c" bottom: "data" top: "c" {CONV} }}\n'
    )
    agree(net)
    assert [value.name for value in Session(net).model.graph.input] == ["data"]


def test_an_output_with_an_inputs_name_gets_another() -> None:
    net = make(DATA + 'layer { name: "n" type: "Power" bottom: "data" top: "data" power_param { shift: 1 } }\n')
    session = Session(net)
    x = random_inputs(net)["data"]
    (name,) = (value.name for value in session.model.graph.output)
    assert name != "data"
    np.testing.assert_allclose(session({"data": x})[name], x + 1, rtol=1e-6)
    assert any("'data'" in note and name in note for note in session.graph.notes)


# ---- outputs -----------------------------------------------------------------------------------


def test_an_input_that_nobody_reads_is_an_output() -> None:
    more = 'layer { name: "more" type: "Input" top: "more" input_param { shape { dim: 2 dim: 4 } } }\n'
    net = make(DATA + more + 'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }\n')
    assert net.outputs == ("more", "r")
    inputs = random_inputs(net)
    for engine in ("onnxruntime", "chainer"):
        np.testing.assert_array_equal(engines.make(engine, net).outputs(inputs)["more"], inputs["more"])


def test_one_value_under_several_outputs() -> None:
    net = make(
        DATA + 'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }\n'
        'layer { name: "s" type: "Split" bottom: "r" top: "s0" top: "s1" top: "s2" }\n'
        'layer { name: "d" type: "Dropout" bottom: "s2" top: "d" }\n'
    )
    outputs = agree(net)
    assert list(outputs) == ["s0", "s1", "d"]
    np.testing.assert_array_equal(outputs["s0"], outputs["d"])


def test_an_output_may_be_what_another_layer_reads_too() -> None:
    net = make(
        DATA + 'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }\n'
        'layer { name: "d" type: "Dropout" bottom: "r" top: "d" }\n'
        'layer { name: "t" type: "TanH" bottom: "r" top: "t" }\n'
    )
    assert list(agree(net)) == ["d", "t"]


def test_layers_without_bottoms() -> None:
    net = make(
        DATA + 'layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 3 } } }\n'
        'layer { name: "k" type: "DummyData" top: "k" top: "l" dummy_data_param { '
        "shape { dim: 2 dim: 3 dim: 6 dim: 7 } data_filler { value: 0.25 } data_filler { value: 2 } } }\n"
        'layer { name: "e" type: "Eltwise" bottom: "data" bottom: "k" top: "e" }\n'
        'layer { name: "s" type: "Scale" bottom: "e" bottom: "p" top: "s" }\n'
        'layer { name: "q" type: "Parameter" top: "q" parameter_param { shape { dim: 2 dim: 2 } } }\n'
    )
    outputs = agree(net)
    assert list(outputs) == ["l", "s", "q"]
    np.testing.assert_array_equal(outputs["l"], np.full((2, 3, 6, 7), 2, np.float32))
    np.testing.assert_array_equal(outputs["q"], net["q"].weight)


def test_a_silenced_blob_is_no_output_and_a_silenced_net_has_none() -> None:
    silence = 'layer { name: "s" type: "Silence" bottom: "r" }\n'
    relu = 'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }\n'
    assert agree(make(DATA + relu + silence)) == {}
    tanh = 'layer { name: "t" type: "TanH" bottom: "data" top: "t" }\n'
    assert list(agree(make(DATA + relu + tanh + silence))) == ["t"]


# ---- shared parameters, several readers ----------------------------------------------------------


def test_shared_parameters_are_stored_once() -> None:
    fc = 'param {{ name: "w" }} param {{ name: "b" }} inner_product_param {{ num_output: 42 axis: 2 }}'
    text = "".join(
        f'layer {{ name: "f{i}" type: "InnerProduct" bottom: "{a}" top: "{b}" {fc.format()} }}\n'
        for i, (a, b) in enumerate([("x", "y"), ("y", "z"), ("z", "out")])
    )
    x = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 42 } } }\n'
    net = make(x + text)
    agree(net)
    sizes = [int(np.prod(tensor.dims)) for tensor in Session(net).model.graph.initializer]
    assert sizes.count(42 * 42) == 1
    assert sizes.count(42) == 1


def test_a_parameter_shared_under_two_shapes() -> None:
    """PERMISSIVE sharing compares counts only."""
    net = make(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 } } }\n'
        'layer { name: "f" type: "InnerProduct" bottom: "x" top: "f" param { name: "w" share_mode: PERMISSIVE } '
        "inner_product_param { num_output: 2 bias_term: false } }\n"
        'layer { name: "g" type: "InnerProduct" bottom: "x" top: "g" param { name: "w" share_mode: PERMISSIVE } '
        "inner_product_param { num_output: 2 bias_term: false transpose: true } }\n"
    )
    agree(net)


def test_many_readers_of_one_blob() -> None:
    net = make(
        DATA + f'layer {{ name: "c" bottom: "data" top: "c" {CONV} }}\n'
        'layer { name: "bn" type: "BatchNorm" bottom: "c" top: "bn" }\n'
        'layer { name: "sc" type: "Scale" bottom: "bn" top: "sc" scale_param { bias_term: true } }\n'
        'layer { name: "r" type: "ReLU" bottom: "bn" top: "r" }\n'
        'layer { name: "e" type: "Eltwise" bottom: "sc" bottom: "bn" bottom: "r" bottom: "sc" top: "e" }\n'
    )
    assert list(agree(net)) == ["e"]


@pytest.mark.parametrize(("rank", "axis"), [(rank, axis) for rank in (2, 3, 4) for axis in range(rank)])
def test_a_scale_joins_a_normalisation_only_where_it_is_per_channel(rank: int, axis: int) -> None:
    shape = "dim: 2" + " dim: 3" * (rank - 1)
    net = make(
        f'layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {shape} }} }} }}\n'
        'layer { name: "bn" type: "BatchNorm" bottom: "x" top: "bn" }\n'
        f'layer {{ name: "sc" type: "Scale" bottom: "bn" top: "sc" scale_param {{ axis: {axis} bias_term: true }} }}\n'
    )
    agree(net)
    joined = [node.op_type for node in Session(net).model.graph.node] == ["BatchNormalization"]
    assert joined == (axis == 1)


# ---- what cannot be ----------------------------------------------------------------------------


def test_all_layers_without_blobs_are_named_at_once() -> None:
    chain = [("data", "a"), ("a", "b")]
    text = DATA + "".join(f'layer {{ name: "{b}" bottom: "{a}" top: "{b}" {CONV} }}\n' for a, b in chain)
    net = assemble(RawNet("w", (), source="w.caffemodel"), prototxt.parse(text))
    with pytest.raises(UnsupportedLayerError) as error:
        to_onnx_model(net)
    assert str(error.value).startswith(
        "w.caffemodel: 2 layers cannot be exported: layer 'a' (Convolution): w.caffemodel has no blobs for it; "
    )
    assert "layer 'b' (Convolution)" in str(error.value)


def test_a_definition_alone_cannot_be_exported() -> None:
    net = assemble(None, prototxt.parse(DATA + f'layer {{ name: "c" bottom: "data" top: "c" {CONV} }}\n'))
    with pytest.raises(UnsupportedLayerError, match="holds no weights\n  hint: a prototxt alone cannot be exported"):
        to_onnx_model(net)


def test_unknown_types_are_named_at_once() -> None:
    text = DATA + "".join(f'layer {{ name: "{n}" type: "Odd{n}" bottom: "data" top: "{n}" }}\n' for n in "ab")
    with pytest.raises(UnsupportedLayerError, match=r"2 layers .*'Odda'.*'Oddb'"):
        to_onnx_model(assemble(None, prototxt.parse(text)))


def test_an_extent_that_must_be_fixed_is_not_left_open() -> None:
    fc = 'layer { name: "f" type: "InnerProduct" bottom: "data" top: "f" inner_product_param { num_output: 2 } }\n'
    net = make(DATA + fc)
    with pytest.raises(UsageError, match="'height' cannot be left open"):
        to_onnx_model(net, inputs={"data": ["batch", 3, "height", "width"]})


def test_what_only_the_values_tell_cannot_be_needed_as_a_number() -> None:
    select = 'layer { name: "sel" type: "Input" top: "sel" input_param { shape { dim: 2 } } }\n'
    flt = 'layer { name: "f" type: "Filter" bottom: "data" bottom: "sel" top: "f" }\n'
    net = make(DATA + select + flt)
    assert Session(net).shapes()["f"][1:] == [3, "height", "width"]
    fc = 'layer { name: "i" type: "Flatten" bottom: "f" top: "i" flatten_param { axis: 0 } }\n'
    more = "inner_product_param { num_output: 2 axis: 0 }"
    fc += f'layer {{ name: "j" type: "InnerProduct" bottom: "i" top: "j" {more} }}\n'
    with pytest.raises(UnsupportedLayerError, match="only the values tell"):
        to_onnx_model(make(DATA + select + flt + fc))


# ---- open extents ------------------------------------------------------------------------------


def takes_one_image(case: Path) -> bool:
    """Whether the case has one input, called data, of four axes."""
    with np.load(case / "io.npz") as recorded:
        return [recorded[name].ndim for name in recorded if name.startswith("in:")] == [4] and "in:data" in recorded


def batch_axes(session: Session) -> dict[str, int]:
    """The axis of each input and output that counts the samples."""
    return {name: shape.index("batch") for name, shape in session.shapes().items() if "batch" in shape}


def twice(values: dict[str, np.ndarray], axes: dict[str, int]) -> dict[str, np.ndarray]:
    """Each sample, and then each sample again from the last to the first."""
    return {
        name: np.concatenate([array, np.flip(array, axes[name])], axes[name]) if name in axes else array
        for name, array in values.items()
    }


@RECORDED
def test_another_batch_gives_the_same_numbers_per_sample(case: Path) -> None:
    net, inputs, recorded = load(case)
    session = Session(net)
    axes = batch_axes(session)
    if not axes.keys() >= recorded.keys():  # the samples are not kept apart, or the batch is fixed
        assert axes.keys() & inputs.keys() or any("is fixed at" in note for note in session.graph.notes)
        return
    outputs = session(twice(inputs, axes))
    for name, expected in twice(recorded, axes).items():
        np.testing.assert_allclose(outputs[name], expected, 1e-4, 1e-5, err_msg=name)


def test_the_batch_is_open_where_it_can_be() -> None:
    opened = [case.name for case in RUNNABLE if batch_axes(Session(load(case)[0])).keys() >= load(case)[2].keys()]
    assert len(opened) >= 0.85 * len(RUNNABLE), sorted(case.name for case in RUNNABLE if case.name not in opened)


def open_sides(net: Net, channels: int) -> Session | None:
    """The net for any height and width, or ``None`` where it has to know them."""
    try:
        return Session(net, inputs={"data": ["batch", channels, "height", "width"]})
    except UsageError as error:
        if "cannot be left open" not in str(error):
            raise
        return None


@pytest.mark.parametrize("case", [*filter(takes_one_image, RUNNABLE)], ids=lambda path: path.name)
def test_open_height_and_width_give_the_numbers_of_fixed_ones(case: Path) -> None:
    net, inputs, _ = load(case)
    channels = inputs["data"].shape[1]
    session = open_sides(net, channels)
    if session is None:
        return
    assert session.shapes()["data"] == ["batch", channels, "height", "width"]
    rng = np.random.default_rng(0)
    for shape in ((1, channels, 17, 24), (3, channels, 30, 13)):
        x = rng.standard_normal(shape).astype(np.float32)
        expected = engines.make("onnxruntime", net, threads=1).outputs({"data": x})
        for name, values in session({"data": x}).items():
            np.testing.assert_allclose(values, expected[name], 1e-4, 1e-5, err_msg=name)


def test_height_and_width_are_open_where_they_can_be() -> None:
    images = [*filter(takes_one_image, RUNNABLE)]
    opened = [case.name for case in images if open_sides(*_net_and_channels(case))]
    assert len(opened) >= 0.7 * len(images), sorted(case.name for case in images if case.name not in opened)


def _net_and_channels(case: Path) -> tuple[Net, int]:
    net, inputs, _ = load(case)
    return net, inputs["data"].shape[1]


def test_extents_that_follow_an_input_have_its_name() -> None:
    net = make(
        DATA + f'layer {{ name: "c" bottom: "data" top: "c" {CONV} }}\n'
        'layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { kernel_size: 2 stride: 2 } }\n'
    )
    shapes = Session(net, inputs={"data": ["n", 3, "h", "w"]}).shapes()
    assert shapes == {"data": ["n", 3, "h", "w"], "p": ["n", 4, "p_dim2", "p_dim3"]}


def test_the_samples_of_sequences_are_open_and_the_steps_are_not() -> None:
    net = make(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 5 dim: 2 dim: 3 } } }\n'
        'layer { name: "cont" type: "Input" top: "cont" input_param { shape { dim: 5 dim: 2 } } }\n'
        'layer { name: "static" type: "Input" top: "static" input_param { shape { dim: 2 dim: 4 } } }\n'
        'layer { name: "l" type: "LSTM" bottom: "x" bottom: "cont" bottom: "static" top: "l" '
        "recurrent_param { num_output: 4 } }\n"
    )
    agree(net)
    session = Session(net)
    assert session.shapes() == {
        "x": [5, "batch", 3], "cont": [5, "batch"], "static": ["batch", 4], "l": [5, "batch", 4],
    }  # fmt: skip
    rng = np.random.default_rng(0)
    x, cont, static = rng.standard_normal((5, 7, 3)), rng.integers(0, 2, (5, 7)), rng.standard_normal((7, 4))
    whole = session({"x": x, "cont": cont, "static": static})["l"]
    for sample in range(7):
        part = slice(sample, sample + 1)
        one = {"x": x[:, part], "cont": cont[:, part], "static": static[part]}
        np.testing.assert_allclose(whole[:, part], session(one)["l"], 1e-5, 1e-6)


# ---- operator sets -----------------------------------------------------------------------------


def check_opset(case: Path, opset: int) -> None:
    net, inputs, recorded = load(case)
    session = Session(net, opset=opset)
    assert [entry.version for entry in session.model.opset_import if entry.domain == ""] == [opset]
    outputs = session(inputs)
    for name, expected in recorded.items():
        np.testing.assert_allclose(outputs[name], expected, 1e-4, 1e-5, err_msg=name)


def newest_run() -> int:
    """The newest operator set that ONNX Runtime supports without warning, as far as ``onnx`` knows it too."""
    return min(newest_opset(), 23)


@RECORDED
def test_the_oldest_and_a_new_operator_set(case: Path) -> None:
    for opset in (13, newest_run()):
        check_opset(case, opset)


def runs(opset: int) -> bool:
    """Whether the ONNX Runtime that is installed knows the operator set."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    try:
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except (RuntimeError, ort.capi.onnxruntime_pybind11_state.Fail, ort.capi.onnxruntime_pybind11_state.InvalidGraph):
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("opset", range(13, newest_opset() + 1))
def test_every_operator_set_on_every_case(opset: int) -> None:
    if not runs(opset):
        pytest.skip(f"this ONNX Runtime does not know opset {opset}")
    for case in RUNNABLE:
        check_opset(case, opset)
