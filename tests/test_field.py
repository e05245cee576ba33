"""Files of the kinds that public bug reports are about: each is computed right, or refused with the right cause."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.caffe_files.fields import refuse_unknown_fields
from bridge.cli import main
from bridge.errors import BridgeError, FormatError, ModelError, UnknownFieldError, UnsupportedLayerError
from bridge.exporting import export_onnx
from tests.conftest import FIXTURES, need

FIELD = FIXTURES / "field"
BOTH, WEIGHTS = ("deploy.prototxt", "weights.caffemodel"), ("weights.caffemodel",)
RTOL, ATOL = 1e-4, 1e-5

RIGHT = [
    ("deeplab_hole", BOTH, ()),
    ("deeplab_hole", WEIGHTS, ()),
    ("deeplab_matwrite", WEIGHTS, ()),
    ("dropout_scale_train", BOTH, ()),
    ("fcn_v1_crop", WEIGHTS, ()),
    ("masked_convolution", BOTH, ()),
    ("nvcaffe014_batchnorm", BOTH, ()),
    ("permute_field150", BOTH, ()),
    ("pooling_ceil_mode", BOTH, ()),
    ("pooling_ceil_mode", WEIGHTS, ()),
    ("priorbox_clustered", BOTH, ()),
    ("snapshot_batch_statistics", BOTH, ()),
    ("stages", BOTH, ("deploy",)),
]
"""Case, files, stages: what is computed is what io.npz holds."""


def files(case: str, names: tuple[str, ...]) -> list[Path]:
    return [FIELD / case / name for name in names]


def recorded(case: str) -> dict[str, np.ndarray]:
    with np.load(FIELD / case / "io.npz") as arrays:
        return dict(arrays)


def outputs(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    fed = {value.name: inputs[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, fed), strict=True))


@pytest.mark.parametrize(("case", "names", "stages"), RIGHT, ids=lambda value: value if isinstance(value, str) else "")
def test_computes_what_is_right(case: str, names: tuple[str, ...], stages: tuple[str, ...], tmp_path: Path) -> None:
    need("onnxruntime")
    arrays = recorded(case)
    inputs = {key[3:]: value for key, value in arrays.items() if key.startswith("in:")}
    net = bridge.load(*files(case, names), stages=stages)
    given = {name: value.shape for name, value in inputs.items()} if names == WEIGHTS else None
    export_onnx(net, tmp_path / "net.onnx", inputs=given, check=False)
    found = outputs(tmp_path / "net.onnx", inputs)
    expected = {key.partition(":")[2]: value for key, value in arrays.items()}
    assert expected.keys() & found.keys()
    for name in expected.keys() & found.keys():
        np.testing.assert_allclose(found[name], expected[name], RTOL, ATOL, err_msg=name)


def test_an_old_crop_is_aligned_as_its_fork_aligns_it(tmp_path: Path) -> None:
    """The deconvolution's corner lies 10 pixels before the image's: of the padding, and of half pixels that cancel."""
    need("onnxruntime")
    arrays = recorded("fcn_v1_crop")
    net = bridge.load(*files("fcn_v1_crop", BOTH))
    export_onnx(net, tmp_path / "net.onnx", check=False)
    found = outputs(tmp_path / "net.onnx", {"data": arrays["in:data"]})["upscore"]
    np.testing.assert_allclose(found, arrays["out:bigscore"][:, :, 10:30, 10:30], RTOL, ATOL)


REFUSED: list[tuple[str, tuple[str, ...], type[BridgeError], str, str]] = [
    ("mixed_layer_layers", BOTH, FormatError, r"both 'layers' and 'layer', of which Caffe drops .*'conv1'", "one form"),
    (
        "unknown_bottom",
        BOTH,
        ModelError,
        r"'pool1' \(Pooling\): reads blob 'conv_1', which no layer",
        "did you mean 'conv1'",
    ),
    ("stages", BOTH, ModelError, r"the shape of input 'data' is not known", "--stage train or val or deploy"),
    ("permute_field150", WEIGHTS, UnknownFieldError, r"'perm' \(Permute\): field 150 has no name", "a prototxt"),
    (
        "detectnet",
        BOTH,
        UnsupportedLayerError,
        r"'cluster' \(Python\): unknown layer type 'caffe\.layers\.detectnet",
        "--output coverage,bboxes",
    ),
]


@pytest.mark.parametrize(("case", "names", "kind", "problem", "hint"), REFUSED, ids=lambda value: str(value)[:20])
def test_is_refused_with_the_right_cause(
    case: str, names: tuple[str, ...], kind: type[BridgeError], problem: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=problem) as caught:
        export_onnx(bridge.load(*files(case, names)), tmp_path / "net.onnx", check=False)
    assert hint in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("empty.prototxt", "the file is empty"),
        ("page.prototxt", "a web page"),
        ("u16.prototxt", "text in UTF-16, expected UTF-8"),
        ("solver.prototxt", "is a solver's file, expected a net"),
    ],
)
def test_what_is_no_net_is_called_what_it_is(name: str, problem: str) -> None:
    with pytest.raises(FormatError, match=problem) as caught:
        bridge.load(FIELD / "bad_prototxt" / name, FIELD / "bad_prototxt" / "ok.caffemodel")
    assert name in str(caught.value)
    assert name != "solver.prototxt" or "train_val.prototxt" in caught.value.hint


@pytest.mark.parametrize(
    ("case", "names", "note"),
    [
        ("negative_variance", BOTH, r"'bn' \(BatchNorm\): a variance below 0: its root is NaN"),
        ("snapshot_batch_statistics", WEIGHTS, r"'bn' \(BatchNorm\): use_global_stats is false, as in a snapshot"),
    ],
)
def test_what_makes_a_net_useless_is_noted(case: str, names: tuple[str, ...], note: str) -> None:
    assert any(re.search(note, line) for line in bridge.load(*files(case, names)).notes)


def dropout(tmp_path: Path, fields: str) -> list[Path]:
    """The case of dropout with other fields in its layer."""
    text = (FIELD / "dropout_scale_train" / "deploy.prototxt").read_text()
    path = tmp_path / "deploy.prototxt"
    path.write_text(text.replace("scale_train: false", fields))
    return [path, FIELD / "dropout_scale_train" / "weights.caffemodel"]


@pytest.mark.parametrize(
    ("fields", "problem", "hint"),
    [
        (
            "scale_trian: false",
            "'dropout_param.scale_trian: false' is in no known caffe.proto",
            "did you mean 'scale_train'",
        ),
        ("sqrt_scale: true", r"'dropout_param.sqrt_scale: true' \(windows\) may change what the layer computes", ""),
    ],
)
def test_a_field_that_nothing_reads_stops_an_export_but_where_it_is_allowed(
    fields: str, problem: str, hint: str, tmp_path: Path
) -> None:
    paths = dropout(tmp_path, fields)
    with pytest.raises(UnknownFieldError, match=problem) as caught:
        refuse_unknown_fields(bridge.load(*paths))
    assert hint in caught.value.hint
    assert "--allow-unknown-fields" in caught.value.hint
    refuse_unknown_fields(bridge.load(*paths, allow_unknown_fields=True))


def test_the_command_line_says_what_it_does_not_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need("onnxruntime", "chainer")
    paths = [str(path) for path in dropout(tmp_path, "sqrt_scale: true")]
    out = tmp_path / "net.onnx"

    def run(*args: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(arg) for arg in args])
        return (int(left.value.code or 0), *capfd.readouterr())

    status, _, err = run("export", *paths, "-o", out)
    assert (status, out.exists()) == (2, False)
    assert "sqrt_scale" in err
    status, report, _ = run("verify", *paths)
    assert status == 1
    assert "sqrt_scale: true" in report
    assert run("verify", *paths, "--allow-unknown-fields")[0] == 0
    assert run("convert", *paths, "-o", tmp_path / "net.chainer.npz")[0] == 2
    assert run("convert", *paths, "-o", tmp_path / "net.caffemodel")[0] == 0
    status, _, err = run("export", *paths, "-o", out, "--allow-unknown-fields")
    assert (status, out.exists()) == (0, True)
    assert "sqrt_scale" in err


def test_levels_choose_layers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = """
      layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }
      layer { name: "low" type: "ReLU" bottom: "x" top: "y" include { max_level: 0 } }
      layer { name: "high" type: "TanH" bottom: "x" top: "y" include { min_level: 1 } }
    """
    (tmp_path / "net.prototxt").write_text(text)
    for level, name in ((0, "low"), (1, "high")):
        with pytest.raises(SystemExit):
            main(["info", str(tmp_path / "net.prototxt"), "--level", str(level)])
        assert name in capfd.readouterr().out


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('layer { name: "b" type: "TanH" bottom: "x" top: "y" }', r"'b' \(TanH\): writes blob 'y', which layer 'a'"),
        ('layer { name: "b" type: "ReLU" bottom: "y" top: "z" relu_param { negative_slope: 1 negative_slope: 2 } }',
         r"layer 'b': 'relu_param.negative_slope' is given 2 times, expected once"),
        ('layer { name: "b" type: "ReLU" name: "c" bottom: "y" top: "z" }', "'name' is given 2 times"),
    ],
)  # fmt: skip
def test_what_caffe_refuses_is_refused(body: str, problem: str, tmp_path: Path) -> None:
    text = 'input: "x" input_shape { dim: 1 dim: 2 } layer { name: "a" type: "ReLU" bottom: "x" top: "y" } '
    (tmp_path / "net.prototxt").write_text(text + body)
    with pytest.raises(FormatError, match=problem):
        bridge.load(tmp_path / "net.prototxt")


def test_a_misspelt_type_is_recognised(tmp_path: Path) -> None:
    shutil.copy(FIELD / "unknown_bottom" / "weights.caffemodel", tmp_path)
    text = (FIELD / "unknown_bottom" / "deploy.prototxt").read_text().replace('"conv_1"', '"conv1"')
    (tmp_path / "deploy.prototxt").write_text(text.replace("Convolution", "Convolutoin"))
    net = bridge.load(tmp_path / "deploy.prototxt", tmp_path / "weights.caffemodel")
    with pytest.raises(UnsupportedLayerError, match="unknown layer type 'Convolutoin': did you mean 'Convolution'"):
        export_onnx(net, tmp_path / "net.onnx", check=False)


def test_an_unknown_sink_is_named(tmp_path: Path) -> None:
    text = (FIELD / "deeplab_matwrite" / "deploy.prototxt").read_text().replace("MatWrite", "DiskWrite")
    (tmp_path / "deploy.prototxt").write_text(text)
    net = bridge.load(tmp_path / "deploy.prototxt", FIELD / "deeplab_matwrite" / "weights.caffemodel")
    with pytest.raises(BridgeError, match=r"'fc8_mat' \(DiskWrite\).*unknown layer type 'DiskWrite'"):
        export_onnx(net, tmp_path / "net.onnx", check=False)


@pytest.mark.parametrize(("version", "order"), [("0.14", (3, 4, 2, 0, 1)), ("0.15", (2, 3, 4, 0, 1))])
def test_nvcaffes_orders_of_blobs_are_one(version: str, order: tuple[int, ...]) -> None:
    """``order`` says where mean, variance, factor, gamma and beta stand in the file."""
    from bridge.layers import build_layer
    from bridge.schema import Blob
    from bridge.schema.message import Message

    rng = np.random.default_rng(0)
    shapes = [(3,), (3,), (1,), (3,), (3,)]
    values = [rng.uniform(1, 2, shape).astype(np.float32) for shape in shapes]
    definition = Message(name="b", type="BatchNorm", bottom="x", top="y")
    expected = build_layer(definition, [Blob.of(value) for value in values])
    stored: list[Any] = [None] * 5
    for value, place in zip(values, order, strict=True):
        stored[place] = Blob.of(value.reshape(1, -1, 1, 1) if version == "0.14" else value)
    found = build_layer(definition, stored)
    assert [role for role, _ in found.blobs.entries()] == [role for role, _ in expected.blobs.entries()]
    for role, blob in expected.blobs.entries():
        np.testing.assert_array_equal(found.blobs[role], blob.numpy())


def test_the_check_of_shapes_takes_the_inputs_that_are_given(tmp_path: Path) -> None:
    """8 x 8 pixels give the 12 values that the weights are for, and 9 x 9 do too; 20 x 20 do not."""
    text = (FIELD / "unknown_bottom" / "deploy.prototxt").read_text().replace('"conv_1"', '"conv1"')
    (tmp_path / "deploy.prototxt").write_text(text.replace("dim: 8 dim: 8", "dim: 20 dim: 20"))
    paths = [tmp_path / "deploy.prototxt", FIELD / "unknown_bottom" / "weights.caffemodel"]
    for inputs, passed in (({"data": (1, 3, 8, 8)}, True), (None, False)):
        report = bridge.verify(*paths, inputs=inputs, engines=(), checks=["shapes"])
        assert any(checked.count("error") for checked in report.checked) != passed


def test_a_blob_of_another_shape_is_not_called_one_of_another_size() -> None:
    from bridge.layers import build_layer
    from bridge.schema import Blob
    from bridge.schema.message import Message

    params = Message(num_output=2, kernel_size=3)
    definition = Message(name="c", type="Convolution", bottom="x", top="y", convolution_param=params)
    layer = build_layer(definition, [Blob.of(np.zeros((3, 2, 3, 3), np.float32)), Blob.of(np.zeros(2, np.float32))])
    with pytest.raises(ModelError, match="blob 'weight' is 3 x 2 x 3 x 3, expected 2 x 3 x 3 x 3"):
        layer.checked_infer((1, 3, 5, 5))


@pytest.mark.parametrize(
    ("param", "noted"),
    [("", True), ("crop_param { offset: 9 }", False), ("crop_param { axis: 2 offset: 0 }", False)],
)
def test_a_crop_that_hed_begins_elsewhere_has_a_note(param: str, noted: bool) -> None:
    text = """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 8 dim: 8 } } }
    layer { name: "c" type: "Convolution" bottom: "data" top: "c"
      convolution_param { num_output: 1 kernel_size: 3 pad: 10 } }
    layer { name: "crop" type: "Crop" bottom: "c" bottom: "data" top: "crop" %s }
    """
    net = assemble(None, prototxt.parse(text % param))
    said = [note for note in net.notes if "begins at 0, as in Caffe 1.0" in note]
    assert [note.partition("needs ")[2] for note in said] == ["crop_param { axis: 2 offset: 9 offset: 9 }"] * noted
