"""Layers that are written in Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge import caffe
from bridge.errors import NotFoundError
from tests.caffe_door import my_layers
from tests.caffe_door.nets import close, feed, make, write
from tests.conftest import need

MODULE = "tests.caffe_door.my_layers"
TIMES = """
force_backward: true
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "times" type: "Python" bottom: "ip" top: "times"
  python_param { module: "%s" layer: "Times" param_str: "2.5" share_in_parallel: true } }
layer { name: "sum" type: "Power" bottom: "times" top: "sum" power_param { shift: 1 } }
layer { name: "loss" type: "Python" bottom: "sum" top: "loss" loss_weight: 3
  python_param { module: "%s" layer: "Squares" } }
"""
NUMBERS = """
layer { name: "data" type: "Python" top: "data" python_param { module: "%s" layer: "Numbers" } }
layer { name: "twice" type: "Power" bottom: "data" top: "twice" power_param { scale: 2 } }
"""


@pytest.mark.parametrize("phase", [caffe.TEST, caffe.TRAIN])
def test_forward_and_back(tmp_path: Path, phase: int) -> None:
    need("chainer")
    net = make(tmp_path, TIMES % (MODULE, MODULE), phase)
    x = feed(net)
    for passes in (1, 2):
        net.clear_param_diffs()
        loss = net._forward(0, len(net.layers) - 1)
        net.backward()
        weight = net.params["ip"][0].data
        sums = 2.5 * x @ weight.T + 1
        close(net.blobs["sum"].data, sums)
        assert loss == pytest.approx(3 * np.square(sums).sum() / 2, rel=1e-5)
        close(net.blobs["data"].diff, 3 * 2.5 * sums @ weight)
        close(net.params["ip"][0].diff, 3 * 2.5 * sums.T @ x)
        assert (net.params["loss"][0].diff == 1).all()
        assert net.layers[2].passes == passes
    assert net.layers[2].type == "Python"


def test_in_onnxruntime_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime")
    from bridge.caffe import engines

    monkeypatch.setattr(engines, "_installed", lambda package: package == "onnxruntime")
    net = make(tmp_path, TIMES % (MODULE, MODULE))
    for seed in range(3):
        x = feed(net, seed)
        net.forward()
        close(net.blobs["sum"].data, 2.5 * x @ net.params["ip"][0].data.T + 1)


def test_a_data_layer_whose_batches_grow(tmp_path: Path) -> None:
    need("onnxruntime")
    net = make(tmp_path, NUMBERS % MODULE)
    for size in (1, 2, 3):
        out = net.forward()["twice"]
        np.testing.assert_array_equal(out, 2 * np.arange(4 * size).reshape(-1, 4) + 20)


def test_parameters_are_saved_and_shared(tmp_path: Path) -> None:
    net, other = (make(tmp_path, TIMES % (MODULE, MODULE)) for _ in range(2))
    net.params["loss"][0].data[...] = [3, 4]
    net.save(tmp_path / "net.caffemodel")
    other.copy_from(tmp_path / "net.caffemodel")
    np.testing.assert_array_equal(other.params["loss"][0].data, [3, 4])
    other.share_with(net)
    net.params["loss"][0].data[...] = 9
    assert (other.params["loss"][0].data == 9).all()


def test_their_errors_are_their_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        make(tmp_path, TIMES.replace("2.5", "much") % (MODULE, MODULE))


def test_a_backward_that_raises_names_its_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("chainer")
    net = make(tmp_path, TIMES % (MODULE, MODULE))
    x = feed(net)

    def fails(*_: object) -> None:
        raise KeyError("gone")

    with monkeypatch.context() as broken:
        broken.setattr(my_layers.Times, "backward", fails)
        net.forward()
        with pytest.raises(KeyError, match="gone") as caught:
            net.backward()
    if hasattr(caught.value, "__notes__"):  # Python 3.11
        assert caught.value.__notes__ == ["in backward of layer 'times' (Python), Times"]
    net.clear_param_diffs()
    net.forward()
    net.backward()
    weight = net.params["ip"][0].data
    close(net.blobs["data"].diff, 3 * 2.5 * (2.5 * x @ weight.T + 1) @ weight)
    assert (net.params["loss"][0].diff == 1).all()


@pytest.mark.parametrize(
    ("module", "layer", "message"),
    [("no_such_module", "Times", "layer 'times' .*no module 'no_such_module'"), (MODULE, "Tims", "no class 'Tims'")],
)
def test_what_cannot_be_found(tmp_path: Path, module: str, layer: str, message: str) -> None:
    text = (TIMES % (MODULE, MODULE)).replace(f'"{MODULE}" layer: "Times"', f'"{module}" layer: "{layer}"')
    with pytest.raises(NotFoundError, match=message):
        make(tmp_path, text)


def test_nothing_else_imports_what_a_model_names(tmp_path: Path) -> None:
    (tmp_path / "evil_layers.py").write_text("raise SystemExit('imported')\n")
    path = write(tmp_path, TIMES % ("evil_layers", "evil_layers"))
    net = bridge.load(path)
    assert "evil_layers.Times" in str(net["times"].reason())
