"""Outputs by name, blobs set by hand, constant fillers, and what bridge inspect shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.cli import main
from bridge.errors import ModelError, NotFoundError, UnsupportedLayerError, UsageError
from bridge.files.inspection import inspect_net, statistics
from bridge.schema import Net
from tests.conftest import FASHION, FIXTURES, need
from tests.nets import make

FIELD = FIXTURES / "field"
DETECTNET = [str(FIELD / "detectnet" / name) for name in ("deploy.prototxt", "weights.caffemodel")]
DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 9 } } }'
FORK = (
    DATA
    + """
layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "r" type: "ReLU" bottom: "c" top: "c" }
layer { name: "s" type: "Slice" bottom: "c" top: "left" top: "right" slice_param { axis: 1 } }
layer { name: "e" type: "Power" bottom: "left" top: "e" power_param { scale: 2 } }
layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { kernel_size: 2 } }
"""
)


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


def ran(path: Path, fed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, fed), strict=True))


# -- outputs ---------------------------------------------------------------------------------------


def test_a_net_is_cut_to_what_its_outputs_need() -> None:
    net = make(FORK).with_outputs("e")
    assert net.layer_names == ["data", "c", "r", "s", "e"]
    assert net.outputs == ("e",), "the other top of the Slice is none"
    assert make(FORK).with_outputs("p", "c").outputs == ("p", "c"), "one that another output is computed from stays"
    assert make(FORK).with_outputs("c").layer_names == ["data", "c", "r"], "the last value of the name"


def test_outputs_that_are_none_are_refused() -> None:
    with pytest.raises(NotFoundError, match="no blob 'lefd'") as caught:
        make(FORK).with_outputs("lefd")
    assert "did you mean 'left'" in caught.value.hint
    with pytest.raises(UsageError, match="'data' is an input"):
        make(FORK).with_outputs("data")
    with pytest.raises(UsageError, match="no outputs"):
        make(FORK).with_outputs()


def test_an_exported_model_has_the_chosen_outputs(tmp_path: Path) -> None:
    need("onnxruntime")
    with np.load(FIELD / "detectnet" / "io.npz") as arrays:
        case = dict(arrays)
    bridge.export_onnx(bridge.load(*DETECTNET), tmp_path / "net.onnx", outputs=["bboxes", "coverage"], check=False)
    found = ran(tmp_path / "net.onnx", {"data": case["in:data"]})
    assert list(found) == ["bboxes", "coverage"]
    for name, values in found.items():
        wanted = next(value for key, value in case.items() if key.endswith(f":{name}"))
        np.testing.assert_allclose(values, wanted, 1e-4, 1e-5)


def test_the_hint_of_an_unknown_last_layer_works_when_typed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    need("onnxruntime")
    target = tmp_path / "net.onnx"
    status, _, err = run(capfd, "export", *DETECTNET, "-o", str(target), "--no-check")
    assert status == 2
    assert not target.exists()
    found = re.search(r"hint: everything before it can be exported with ([^;]*)", err)
    assert found
    status, _, err = run(capfd, "export", *DETECTNET, "-o", str(target), "--no-check", *shlex.split(found[1]))
    assert (status, target.exists()) == (0, True), err


def test_an_unknown_layer_in_place_hides_the_name_before_it() -> None:
    text = FORK.replace('"Power" bottom: "left" top: "e"', '"Mystery" bottom: "left" top: "left"')
    net = assemble(None, prototxt.parse(text))
    assert net.flow.outputs_without([4]) == ["right", "p"]


def test_a_loss_is_no_output_but_its_inference_half_is() -> None:
    labels = 'layer { name: "d" type: "Data" top: "x" top: "label" data_param { batch_size: 1 } }'
    text = (
        labels
        + """
layer { name: "f" type: "InnerProduct" bottom: "x" top: "f" inner_product_param { num_output: 3 } }
layer { name: "l" type: "SoftmaxWithLoss" bottom: "f" bottom: "label" top: "loss" }
"""
    )
    net, shapes = assemble(None, prototxt.parse(text)), {"x": (1, 3, 2, 2)}
    assert bridge.inference_net(net, shapes, ["prob"]).outputs == ("prob",)
    assert bridge.inference_net(net, shapes, ["f"]).layer_names == ["d", "f"]
    with pytest.raises(UsageError, match="'loss' is computed in training only"):
        bridge.inference_net(net, shapes, ["loss"])


# -- blobs set by hand, and fillers ------------------------------------------------------------------


def colorization() -> tuple[Net, dict[str, np.ndarray], Net]:
    folder = FIELD / "colorization"
    with np.load(folder / "io.npz") as arrays:
        return (
            bridge.load(folder / "deploy.prototxt", folder / "weights.caffemodel"),
            dict(arrays),
            bridge.load(folder / "full.caffemodel"),
        )


def test_blobs_set_by_hand_and_constant_fillers_give_caffes_values(tmp_path: Path) -> None:
    need("onnxruntime")
    net, arrays, full = colorization()
    assert any("'conv8_313_rh' (Scale)" in note and "gamma 2.606" in note for note in net.notes)
    hand = {role: full["class8_ab"].blobs[role] for role in ("weight", "bias")}
    with pytest.raises(UnsupportedLayerError, match="class8_ab") as caught:
        bridge.export_onnx(net, tmp_path / "net.onnx", outputs=["class8_ab"], check=False)
    assert "net.with_blobs('class8_ab', weight=..., bias=...)" in caught.value.hint
    filled = net.with_blobs("class8_ab", **hand)
    bridge.export_onnx(filled, tmp_path / "net.onnx", outputs=["class8_ab"], check=False)
    found = ran(tmp_path / "net.onnx", {"data_l": arrays["in:data_l"]})["class8_ab"]
    np.testing.assert_allclose(found, arrays["blob:class8_ab"], 1e-4, 1e-5)


@pytest.mark.parametrize(
    ("arrays", "kind", "message"),
    [
        ({"weight": np.zeros((2, 5, 1, 1)), "bias": np.zeros(2)}, ModelError, "2 x 5 x 1 x 1"),
        ({"weight": np.zeros((2, 6, 1, 1))}, ModelError, "'bias' is missing"),
        ({"wieght": np.zeros(1)}, NotFoundError, "no blob 'wieght'"),
        ({"weight": np.array("x"), "bias": np.zeros(2)}, ModelError, "expected numbers"),
    ],
)
def test_blobs_that_do_not_fit_are_refused(arrays: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        colorization()[0].with_blobs("class8_ab", **arrays)


def test_a_shared_parameter_is_set_in_every_layer() -> None:
    net = bridge.load(FASHION / "deploy.prototxt", next(FASHION.glob("*.caffemodel")))
    twin = net["conv1"].changed(name="twin", tops=["other"])
    both = net.replace(layers=(*net.layers, twin))
    ones = np.ones_like(net["conv1"].weight)
    changed = both.with_blobs("conv1", weight=ones)
    assert (changed["twin"].weight == 1).all()
    assert (changed["conv1"].bias == net["conv1"].bias).all()


def test_a_random_or_unnamed_filler_is_no_weight(tmp_path: Path) -> None:
    folder = FIELD / "colorization"
    text = (folder / "deploy.prototxt").read_text()
    for other in ("filler { type: 'gaussian' }", ""):
        path = tmp_path / "deploy.prototxt"
        path.write_text(text.replace("filler { type: 'constant' value: 2.606 }", other))
        assert bridge.load(path, folder / "weights.caffemodel")["conv8_313_rh"].uncovered


# -- bridge inspect ----------------------------------------------------------------------------------


def test_multiply_adds_are_those_of_the_formulas() -> None:
    more = 'layer { name: "f" type: "InnerProduct" bottom: "p" top: "f" inner_product_param { num_output: 5 } }'
    net = make(FORK + more)
    counts = {one["name"]: one["multiply_adds"] for one in inspect_net(net, values=False)["layers"]}
    n, channels, height, width = net.inputs["data"] or ()
    assert counts["c"] == n * 2 * (height - 2) * (width - 2) * 9 * channels
    pooled = net.flow.final_shapes()["p"]
    assert counts["f"] == 5 * int(np.prod(pooled))
    assert counts["r"] is None
    alone = assemble(None, prototxt.parse(FORK + more))
    assert {one["name"]: one["multiply_adds"] for one in inspect_net(alone)["layers"]} == counts


def test_statistics_leave_out_what_is_no_number() -> None:
    found = statistics(np.float32([0, 2, 4, np.nan, np.inf, -np.inf]))
    assert found == {
        "min": 0.0, "max": 4.0, "mean": 2.0, "deviation": pytest.approx((8 / 3) ** 0.5), "zeros": 1, "nan": 1,
        "infinite": 2,
    }  # fmt: skip
    assert statistics(np.float32([np.nan]))["mean"] is None


def test_inspect_shows_a_layer_and_totals(capfd: pytest.CaptureFixture[str]) -> None:
    files = [str(FASHION / "deploy.prototxt"), str(next(FASHION.glob("*.caffemodel")))]
    status, out, _ = run(capfd, "inspect", *files, "--json")
    data = json.loads(out)
    net = bridge.load(*files)
    assert status == 0
    assert data["totals"]["values"] == sum(blob.size for layer in net for blob in dict(layer.blobs).values())
    assert data["totals"]["multiply_adds"] == sum(one["multiply_adds"] or 0 for one in data["layers"])
    status, out, _ = run(capfd, "inspect", *files, "--layer", "conv2")
    weight = net["conv2"].weight
    assert f"{weight.max():.7g}" in out
    assert "num_output   32" in out
    assert max(map(len, out.splitlines())) <= 160
    assert run(capfd, "inspect", *files, "conv2") == (0, out, ""), "the name behind the files"
    status, _, err = run(capfd, "inspect", *files, "--layer", "conv9")
    assert status == 2
    assert "did you mean 'conv" in err


def test_inspect_names_a_field_that_may_change_the_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(FORK.replace("kernel_size: 2", "kernel_size: 2 wobble: 3"))
    status, out, _ = run(capfd, "inspect", str(path), "--layer", "p")
    assert status == 0
    assert re.search(r"pooling_param\.wobble +3 +may change", out)


def test_a_hint_names_no_copy_of_an_input() -> None:
    layers = (
        'layer { name: "s" type: "Split" bottom: "data" top: "a" top: "b" }',
        'layer { name: "e" type: "TanH" bottom: "a" top: "e" }',
        'layer { name: "m" type: "Mystery" bottom: "e" bottom: "b" top: "m" }',
    )
    net = assemble(None, prototxt.parse('input: "data" input_shape { dim: 1 }\n' + "\n".join(layers)))
    assert net.flow.outputs_without([3]) == ["e"]
