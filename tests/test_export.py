"""``bridge export``: the files it writes, the check before it, and how it ends."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bridge
from bridge import cli, engines
from bridge.errors import BridgeError, DifferenceError, ModelError, UsageError
from bridge.layers.batch_norm import BatchNorm
from bridge.layers.detection_output import DetectionOutput
from bridge.layers.pooling import Pooling
from bridge.onnx_export import file as onnx_file
from bridge.schema import Layer, Net
from bridge.verification import exported
from tests.conftest import FASHION, GOLDEN, ROOT, need
from tests.encode import blob, chunk
from tests.nets import make
from tests.test_export_graph import run
from tests.test_golden import load

CASE = {case.name: case for case in GOLDEN}
DEPLOY, WEIGHTS, IO = FASHION / "deploy.prototxt", FASHION / "fashion_alexnet.caffemodel", FASHION / "io.npz"
SOURCES = ("out.onnx", "out.onnx.data")


def ends(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str, str]:
    """Exit status, stdout and stderr of ``bridge export``."""
    with pytest.raises(SystemExit) as left:
        cli.main(["export", *map(str, arguments)])
    out, err = capfd.readouterr()
    return left.value.code, out, err


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path]:
    """Definition and weights of a trained net, in a folder of their own."""
    shutil.copy(DEPLOY, tmp_path)
    shutil.copy(WEIGHTS, tmp_path)
    return tmp_path / DEPLOY.name, tmp_path / WEIGHTS.name


def check_numbers(path: Path) -> None:
    """The model, loaded from disk, computes what Caffe recorded."""
    need("onnxruntime")
    onnx.checker.check_model(str(path), full_check=True)
    _, inputs, recorded = load(FASHION)
    np.testing.assert_allclose(run(path, inputs)["prob"], recorded["prob"], 1e-4, 1e-5)


# ---- one file ------------------------------------------------------------------------------------


def test_an_export_is_silent_but_for_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need("onnxruntime", "chainer")
    status, out, err = ends(capfd, DEPLOY, WEIGHTS, "-o", tmp_path / "out.onnx")
    assert (status, err) == (0, "")
    assert out == f"{tmp_path / 'out.onnx'}: 15 nodes, 140,968 bytes of weights, opset 17\n"
    check_numbers(tmp_path / "out.onnx")


def test_what_is_written_reads_back_bit_for_bit(tmp_path: Path) -> None:
    for name in ("net_alexnet_mini", "ip_axis2", "lstm_static", "deconv_axis2"):
        net = load(CASE[name])[0]
        bridge.export_onnx(net, tmp_path / "out.onnx", check=False)
        back = bridge.load(tmp_path / "out.onnx")
        for layer in net.layers:
            for role, array in layer.blobs.items():
                np.testing.assert_array_equal(back[layer.name].blobs[role], array, err_msg=f"{name}: {role}")


@pytest.mark.parametrize("name", [name for name in CASE if name.startswith("bn_")])
def test_statistics_read_back_with_their_factor_taken_in(name: str, tmp_path: Path) -> None:
    need("chainer")
    net, inputs, _ = load(CASE[name])
    bridge.export_onnx(net, tmp_path / "out.onnx", check=False)
    back = bridge.load(tmp_path / "out.onnx")
    assert not [layer.label for layer in back if layer.uncovered]
    norms = [layer for layer in back if isinstance(layer, BatchNorm)]
    assert all(layer.blobs["scale_factor"] == 1 for layer in norms)
    assert ["scale_factor" in note for note in back.notes] == [True] * bool(norms)
    computed = [engines.make("chainer", each).outputs(inputs) for each in (net, back)]
    for blob_name, array in computed[0].items():
        np.testing.assert_array_equal(computed[1][blob_name], array, err_msg=blob_name)


def test_the_metadata_name_the_tool_and_the_sources(model: tuple[Path, Path], tmp_path: Path) -> None:
    bridge.export_onnx(bridge.load(*model), tmp_path / "out.onnx", check=False, digest=True)
    written = onnx.load(str(tmp_path / "out.onnx"))
    metadata = {entry.key: entry.value for entry in written.metadata_props}
    for source in model:
        assert metadata[f"bridge.sha256.{source.name}"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert metadata["bridge.version"] == bridge.__version__
    assert 'name: "conv1"' in metadata["bridge.prototxt"]
    assert (written.producer_name, written.producer_version) == ("weight-bridge", bridge.__version__)


@pytest.mark.parametrize(
    ("options", "there"), [({}, True), ({"check": False}, False), ({"check": False, "digest": True}, True),
                           ({"digest": False}, False)]
)  # fmt: skip
def test_sources_are_digested_where_the_model_is_checked(options: dict[str, Any], there: bool, tmp_path: Path) -> None:
    bridge.export_onnx(bridge.load(DEPLOY, WEIGHTS), tmp_path / "out.onnx", **options)
    keys = {entry.key for entry in onnx.load(str(tmp_path / "out.onnx")).metadata_props}
    assert (f"bridge.sha256.{WEIGHTS.name}" in keys) == there


def test_a_source_that_is_gone_costs_its_digest_only(model: tuple[Path, Path], tmp_path: Path) -> None:
    net = bridge.load(*model)
    for source in model:
        source.unlink()
    bridge.export_onnx(net, tmp_path / "out.onnx", check=False, digest=True)
    check_numbers(tmp_path / "out.onnx")


def text_of(net: Net) -> str:
    from bridge.caffe_files import prototxt

    return prototxt.format(net.to_message())


@pytest.mark.parametrize("mode", [None, "file", "source"])
def test_the_source_is_not_written_over(mode: str | None, model: tuple[Path, Path]) -> None:
    before = model[1].read_bytes()
    targets = [model[0], model[1], *([model[1].with_suffix("")] if mode == "file" else [])]
    if mode == "file":
        model[1].rename(model[1].with_suffix(".data"))
        model = (model[0], model[1].with_suffix(".data"))
        targets = [model[1].with_suffix("")]
    for target in targets:
        with pytest.raises(UsageError, match="would be written over"):
            bridge.export_onnx(bridge.load(*model), target, external_data=mode, check=False)
    assert model[1].read_bytes() == before


# ---- the check -------------------------------------------------------------------------------------


@pytest.fixture
def wrong_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter whose Pooling is off by a thousandth."""
    right = Pooling.to_onnx

    def wrong(self: Pooling, g: Any, *x: str) -> Any:
        made = right(self, g, *x)
        return g.Mul(made, g.const(np.float32(1.001)))

    monkeypatch.setattr(Pooling, "to_onnx", wrong)


@pytest.mark.usefixtures("wrong_pooling")
@pytest.mark.parametrize("given", [(), ("--recorded", IO)])
def test_a_model_that_differs_is_not_written(
    given: tuple[Any, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    need("onnxruntime", "chainer")
    status, out, err = ends(capfd, DEPLOY, WEIGHTS, "-o", tmp_path / "out.onnx", *given)
    assert (status, out) == (1, "")
    assert "layer 'pool1' (Pooling): top 'pool1' differs" in err
    assert err.splitlines()[-1] == "  hint: nothing was written; --no-check writes it all the same"
    assert not list(tmp_path.iterdir())
    status, _, _ = ends(capfd, DEPLOY, WEIGHTS, "-o", tmp_path / "out.onnx", "--no-check")
    assert status == 0


def recorded(folder: Path, **changes: Any) -> Path:
    """The fixture's recorded arrays, changed: a function of the array, or ``None`` to leave one out."""
    with np.load(IO) as arrays:
        kept = {name: arrays[name] for name in arrays}
    for key, change in changes.items():
        name = key.replace("_", ":")
        array = kept.pop(name)
        if change is not None:
            kept[name] = change(array)
    np.savez(folder / "io.npz", **kept)
    return folder / "io.npz"


def test_recorded_outputs_are_what_counts(tmp_path: Path) -> None:
    need("onnxruntime")
    net = bridge.load(DEPLOY, WEIGHTS)
    assert bridge.export_onnx(net, tmp_path / "out.onnx", recorded=IO).notes == []
    with pytest.raises(DifferenceError, match=r"differs from .*io.npz: layer 'prob' \(Softmax\)"):
        bridge.export_onnx(net, tmp_path / "out.onnx", recorded=recorded(tmp_path, out_prob=lambda prob: prob + 0.01))
    with pytest.raises(DifferenceError, match="'prob'"):  # of an export in float16 as well
        bridge.export_onnx(net, tmp_path / "out.onnx", recorded=tmp_path / "io.npz", half=True)


def test_recorded_arrays_must_fit(tmp_path: Path) -> None:
    need("onnxruntime")
    net, target = bridge.load(DEPLOY, WEIGHTS), tmp_path / "out.onnx"
    for changes, message in (
        ({"in_data": None}, "records no input 'data'"),
        ({"in_data": lambda x: x[:, :, :9]}, "input 'data' is 10 x 1 x 9 x 28, the model takes batch x 1 x 28 x 28"),
        ({"out_prob": None, "blob_prob": None}, "records none of the outputs prob"),
    ):
        with pytest.raises(UsageError, match=message):
            bridge.export_onnx(net, target, recorded=recorded(tmp_path, **changes))
    with pytest.raises(BridgeError, match="cannot be read"):
        bridge.export_onnx(net, target, recorded=tmp_path / "absent.npz")
    assert not target.exists()


def test_recorded_inputs_are_those_of_the_net_whatever_the_model_does_before(tmp_path: Path) -> None:
    need("onnxruntime")
    from bridge.onnx_export.preprocess import Preprocess

    preprocess = Preprocess(np.float32([0.3]), 2.0)
    bridge.export_onnx(bridge.load(DEPLOY, WEIGHTS), tmp_path / "out.onnx", recorded=IO, preprocess=preprocess)
    _, inputs, outputs = load(FASHION)
    raw = {"data": preprocess.undo(inputs["data"])}
    np.testing.assert_allclose(run(tmp_path / "out.onnx", raw)["prob"], outputs["prob"], 1e-4, 1e-5)


def test_a_run_that_differs_as_a_whole_is_told_apart_from_a_layer_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a runtime's optimiser breaks what it joins."""
    need("onnxruntime", "chainer")
    plain = exported._Check._run_model

    def broken(self: Any, more: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        return {name: array + (0 if more else 0.01) for name, array in plain(self, more).items()}

    monkeypatch.setattr(exported._Check, "_run_model", broken)
    for given in (None, IO):
        with pytest.raises(DifferenceError, match=r"as a whole differs from .*, though no layer of it does"):
            bridge.export_onnx(bridge.load(DEPLOY, WEIGHTS), tmp_path / "out.onnx", recorded=given)


@pytest.mark.parametrize(
    ("package", "remark"),
    [("onnxruntime", "not run: engine 'onnxruntime'"), ("chainer", "run, but not compared with a second engine")],
)
def test_what_could_not_be_checked_is_said(
    package: str, remark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnxruntime")
    missing = engines.missing

    def without(name: str) -> Any:
        return bridge.errors.MissingExtraError(f"engine '{name}': not installed") if name == package else missing(name)

    monkeypatch.setattr(engines, "missing", without)
    (note,) = bridge.export_onnx(bridge.load(DEPLOY, WEIGHTS), tmp_path / "out.onnx").notes
    assert note.startswith(remark)


@pytest.fixture
def lacking_detections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Chainer nor NumPy has DetectionOutput."""
    monkeypatch.setattr(DetectionOutput, "to_numpy", Layer.to_numpy)


def test_what_chainer_lacks_is_compared_with_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime", "chainer")
    net = load(CASE["detection_output"])[0]
    assert not bridge.export_onnx(net, tmp_path / "out.onnx").notes
    right = DetectionOutput.to_numpy
    monkeypatch.setattr(DetectionOutput, "to_numpy", lambda self, *x: [top * 1.001 for top in right(self, *x)])
    with pytest.raises(DifferenceError, match=r"layer 'l' \(DetectionOutput\)"):
        bridge.export_onnx(net, tmp_path / "out.onnx")


@pytest.mark.usefixtures("lacking_detections")
def test_layers_before_one_that_chainer_lacks_are_compared(tmp_path: Path) -> None:
    need("onnxruntime", "chainer")
    net = load(CASE["detection_output"])[0]
    graph = bridge.export_onnx(net, tmp_path / "out.onnx")
    assert graph.notes == ["not compared, as Chainer has no such layer: layer 'l' (DetectionOutput)"]


@pytest.mark.usefixtures("wrong_pooling", "lacking_detections")
def test_a_wrong_layer_before_one_that_chainer_lacks_is_found(tmp_path: Path) -> None:
    need("onnxruntime", "chainer")
    text = (CASE["detection_output"] / "deploy.prototxt").read_text()
    pool = 'layer { name: "p" type: "Pooling" bottom: "img" top: "pooled" pooling_param { kernel_size: 2 } }\n'
    data = 'layer { name: "img" type: "Input" top: "img" input_param { shape { dim: 1 dim: 1 dim: 4 dim: 4 } } }\n'
    (tmp_path / "net.prototxt").write_text(text + data + pool)
    net = bridge.load(tmp_path / "net.prototxt", CASE["detection_output"] / "weights.caffemodel")
    with pytest.raises(DifferenceError, match=r"layer 'p' \(Pooling\)"):
        bridge.export_onnx(net, tmp_path / "out.onnx")


def test_a_model_that_the_runtime_refuses_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime")

    def wrong(self: Pooling, g: Any, *x: str) -> Any:
        return g.Reshape(x[0], g.ints([7, 7]))

    monkeypatch.setattr(Pooling, "to_onnx", wrong)
    monkeypatch.setattr(onnx_file.OnnxFile, "check", lambda self: None)
    monkeypatch.setattr(onnx_file.OnnxFile, "infer_shapes", lambda self: None)
    with pytest.raises(ModelError, match="ONNX Runtime refuses the model"):
        bridge.export_onnx(bridge.load(DEPLOY, WEIGHTS), tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


# ---- what cannot be --------------------------------------------------------------------------------


def test_all_that_is_missing_is_listed_and_nothing_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(
        'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 3 } } }\n'
        'layer { name: "a" type: "Odd" bottom: "d" top: "a" }\nlayer { name: "b" type: "Odder" bottom: "a" top: "b" }\n'
    )
    status, out, err = ends(capfd, path, "-o", tmp_path / "out.onnx")
    assert (status, out) == (2, "")
    assert "layer 'a' (Odd)" in err.splitlines()[0]
    assert "layer 'b' (Odder)" in err.splitlines()[0]
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--opset", "12"], "opset 12 is outside"),
        (["--input", "nope=1,2"], "the net has no input 'nope'"),
        (["--input", "data=1,1,28,28", "--input", "data=2,1,28,28"], "the extents of 'data' were given before"),
        (["--input", "data=1,1,-5,28"], "extent -5 is not positive"),
        (["--bgr"], "input 'data' has 1 channels, expected 3"),
        (["--input", "data=1,1,0,28"], "extent 0 is not positive"),
        (["--mean", "absent.binaryproto"], "absent.binaryproto"),
        (["--mean", "1,2"], "a mean of 2 does not fit an input of 1 channels"),
        (["--scale", "0"], "the scale not 0"),
        (["--input", "data=batch,1,h,w"], "cannot be left open"),
        (["--recorded", "absent.npz"], "absent.npz"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    need("onnxruntime")
    status, out, err = ends(capfd, DEPLOY, WEIGHTS, "-o", tmp_path / "out.onnx", *arguments)
    assert (status, out) == (2, "")
    lines = err.splitlines()
    assert message in lines[0]
    assert len(lines) == 1 + lines[-1].startswith("  hint: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["absent/out.onnx", "."])
def test_a_target_that_cannot_be_written(target: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, _, err = ends(capfd, DEPLOY, WEIGHTS, "-o", tmp_path / target, "--no-check")
    assert status == 2
    assert len(err.splitlines()) == 1


# ---- which weights go with which layer ---------------------------------------------------------------


def test_weights_without_a_layer_are_reported(model: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    definition, weights = model
    text = definition.read_text()
    start = text.index('layer {\n  name: "prob"') if 'layer {\n  name: "prob"' in text else text.rindex("layer")
    definition.write_text(text[:start].replace('"fc8"', '"renamed"') + text[start:].replace('"fc8"', '"renamed"'))
    status, _, err = ends(capfd, definition, weights, "-o", definition.with_name("out.onnx"))
    assert status == 2
    assert "layer 'renamed' (InnerProduct)" in err
    assert not definition.with_name("out.onnx").exists()


def test_weights_that_no_layer_takes_are_a_note(model: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    definition, weights = model
    weights.write_bytes(weights.read_bytes() + layer_bytes("spare", "InnerProduct", np.ones((2, 3), np.float32)))
    status, _, err = ends(capfd, definition, weights, "-o", definition.with_name("out.onnx"), "--no-check")
    assert status == 0
    assert "'spare'" in err


def layer_bytes(name: str, kind: str, *blobs: np.ndarray, bottom: str = "", more: bytes = b"") -> bytes:
    """A V2 layer."""
    wiring = chunk(3, bottom.encode()) + chunk(4, name.encode()) if bottom else b""
    return chunk(
        100,
        chunk(1, name.encode()) + chunk(2, kind.encode()) + wiring + b"".join(chunk(7, blob(b)) for b in blobs) + more,
    )


# ---- docs/export.md ------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip() for line in PAGE.splitlines() if line.strip().startswith(("bridge export ", "bridge inspect "))
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(DEPLOY, "deploy.prototxt")
    shutil.copy(WEIGHTS, "model.caffemodel")
    shutil.copy(IO, "io.npz")
    data = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 9 dim: 9 } } }\n'
    net = make(data + 'layer { name: "c" type: "Convolution" bottom: "data" top: "c" '
               "convolution_param { num_output: 4 kernel_size: 3 } }\n")  # fmt: skip
    Path("fcn.prototxt").write_text(text_of(net))
    bridge.save(net, "fcn.caffemodel")
    Path("mean.binaryproto").write_bytes(blob(np.full((1, 1, 32, 32), 33.3, np.float32), "packed", "legacy"))
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_commands_of_the_page_work(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    need("onnxruntime", "chainer")
    with pytest.raises(SystemExit) as left:
        cli.main(command.split()[1:])
    out, err = capfd.readouterr()
    assert left.value.code == 0, err
    assert ("nodes" if "export" in command else "fc6") in out


def test_the_page_names_every_option(capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ends(capfd, "--help")
    shared = {"--reader", "--phase", "--stage", "--pycaffe-python", "--plugin", "--memory"}
    shared |= {"--help", "--output", "--verbose", "--quiet"}
    options = set(re.findall(r"--[a-z0-9-]+", out)) - shared
    positive = {option for option in options if not option.startswith("--no-")}
    assert {option for option in positive if option not in PAGE} <= {"--dynamic-batch", "--check"}


def test_the_page_leads_opencv_from_caffe_to_onnx(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need("cv2", "onnxruntime")
    import cv2

    status, _, _ = ends(capfd, "deploy.prototxt", "model.caffemodel", "-o", "model.onnx", "--no-check")
    assert status == 0
    _, inputs, recorded = load(FASHION)
    net = cv2.dnn.readNetFromONNX("model.onnx")
    net.setInput(inputs["data"], "data")
    np.testing.assert_allclose(net.forward("prob"), recorded["prob"], 1e-4, 1e-5)
