"""How nets are made, what they show, and what they say when something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge import caffe
from bridge.errors import (
    BridgeError,
    MissingExtraError,
    MissingFileError,
    ModelError,
    NotFoundError,
    UnknownFieldError,
    UnsupportedLayerError,
    UsageError,
)
from tests.caffe_door.nets import FORKED, SMALL, TRAINED, close, feed, make, plain, write
from tests.conftest import need


def test_both_constructors(tmp_path: Path) -> None:
    net = make(tmp_path)
    net.save(tmp_path / "net.caffemodel")
    prototxt, weights = str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel")
    nets = [
        caffe.Net(prototxt, weights, caffe.TEST),
        caffe.Net(prototxt, caffe.TEST, weights=weights),
        caffe.Net(network_file=prototxt, phase=caffe.TRAIN, weights=weights, level=0, stages=None),
    ]
    assert [other.phase for other in nets] == [caffe.TEST, caffe.TEST, caffe.TRAIN]
    for other in nets:
        for name, blobs in net.params.items():
            for mine, theirs in zip(blobs, other.params[name], strict=True):
                np.testing.assert_array_equal(mine.data, theirs.data)


def test_names_and_numbers(tmp_path: Path) -> None:
    net = make(tmp_path)
    assert net.name == "small"
    assert net.inputs == ["data"]
    assert net.outputs == ["prob"]
    assert list(net._layer_names) == ["data", "conv", "relu", "pool", "ip", "prob"]
    assert list(net.blobs) == net._blob_names == ["data", "conv", "pool", "ip", "prob"]
    assert net.top_names["relu"] == ["conv"]
    assert net.bottom_names["ip"] == ["pool"]
    assert [layer.type for layer in net.layers] == [
        "Input",
        "Convolution",
        "ReLU",
        "Pooling",
        "InnerProduct",
        "Softmax",
    ]
    assert net.layer_dict["ip"].blobs is net.params["ip"]
    assert list(net.params) == ["conv", "ip"]
    assert type(net.params["ip"]) is caffe._caffe.BlobVec
    blob = net.params["conv"][0]
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == (4, 3, 3, 3, 108)
    assert (net.params["ip"][1].num, net.params["ip"][1].width) == (5, 1)
    assert list(blob.shape) == [4, 3, 3, 3]


def test_splits_have_caffes_names(tmp_path: Path) -> None:
    net = make(tmp_path, FORKED)
    assert list(net._layer_names) == ["data", "a", "r", "a_r_0_split", "b", "c", "sum"]
    assert net.top_names["a_r_0_split"] == ["a_r_0_split_0", "a_r_0_split_1"]
    assert net.bottom_names["c"] == ["a_r_0_split_1"]


def test_a_loss_weight_is_one_more_reader(tmp_path: Path) -> None:
    text = SMALL.replace('type: "Softmax"', 'type: "Softmax" loss_weight: 3').replace("force_backward: true", "")
    text += 'layer { name: "end" type: "Silence" bottom: "prob" }'
    net = make(tmp_path, text)
    assert net.blob_loss_weights["prob_prob_0_split_0"] == 3
    assert net.blob_loss_weights["prob"] == net.blob_loss_weights["prob_prob_0_split_1"] == 0
    assert net.bottom_names["end"] == ["prob_prob_0_split_1"]


def test_outputs_are_in_alphabetical_order(tmp_path: Path) -> None:
    text = SMALL + "".join(
        f'layer {{ name: "{name}" type: "Power" bottom: "pool" top: "{name}" }}' for name in ("zeta", "alpha")
    )
    assert make(tmp_path, text).outputs == ["alpha", "prob", "zeta"]


@pytest.mark.parametrize(("level", "stages", "expected"), [(0, [], []), (2, [], ["high"]), (0, ["s"], ["staged"])])
def test_level_and_stages(tmp_path: Path, level: int, stages: list[str], expected: list[str]) -> None:
    text = (
        SMALL
        + """
        layer { name: "high" type: "Power" bottom: "ip" top: "high" include { min_level: 1 } }
        layer { name: "staged" type: "Power" bottom: "ip" top: "staged" include { stage: "s" } }"""
    )
    net = make(tmp_path, text, level=level, stages=stages)
    assert [name for name in net._layer_names if name in ("high", "staged")] == expected


SHARING = """
layer { name: "%s" type: "InnerProduct" bottom: "data" top: "%s" param { name: "w" }
  inner_product_param { num_output: %d bias_term: false } }
"""


def test_shared_parameters_are_one_memory(tmp_path: Path) -> None:
    one = FORKED + SHARING % ("one", "one", 2)
    net = make(tmp_path, one + SHARING % ("two", "two", 2))
    net.params["two"][0].data[...] = 7
    assert (net.params["one"][0].data == 7).all()
    assert len(net.learnable_params) == 3
    with pytest.raises(ModelError, match=r"layer 'two'.*shares parameter 'w' of 2 x 4, its own is 3 x 4"):
        make(tmp_path, one + SHARING % ("two", "two", 3))


def test_share_with(tmp_path: Path) -> None:
    one, two = make(tmp_path), make(tmp_path)
    x = feed(two)
    two.forward()
    two.share_with(one)
    one.params["ip"][1].data[2] = 5
    close(two.forward(data=x)["prob"], plain(one, x)["prob"])
    with pytest.raises(ModelError, match="layer 'ip'"):
        make(tmp_path, SMALL.replace("num_output: 5", "num_output: 6")).share_with(one)


def test_save_hdf5_and_back(tmp_path: Path) -> None:
    need("h5py")
    one, two = make(tmp_path), make(tmp_path)
    one.save_hdf5(tmp_path / "net.caffemodel.h5")
    two.load_hdf5(tmp_path / "net.caffemodel.h5")
    np.testing.assert_array_equal(one.params["conv"][0].data, two.params["conv"][0].data)


def test_a_held_array_is_written_by_copy_from(tmp_path: Path) -> None:
    net = make(tmp_path)
    net.save(tmp_path / "a.caffemodel")
    held = net.params["ip"][0].data
    old = held.copy()
    held[...] = 0
    net.copy_from(tmp_path / "a.caffemodel")
    np.testing.assert_array_equal(held, old)


def test_the_stored_blobs_decide_a_layers_form(tmp_path: Path) -> None:
    """NVCaffe's BatchNorm has five blobs, and the same definition as BVLC Caffe's, which has three."""
    need("onnxruntime")
    text = """layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }
        layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn" %s }"""
    five = make(tmp_path, text % "batch_norm_param { scale_filler { value: 1 } }")
    rng = np.random.default_rng(0)
    for blob in five.params["bn"]:
        blob.data[...] = rng.uniform(0.5, 1, blob.data.shape)
    five.save(tmp_path / "five.caffemodel")
    net = make(tmp_path, text % "")
    assert len(net.params["bn"]) == 3
    net.copy_from(tmp_path / "five.caffemodel")
    assert len(net.params["bn"]) == len(net.layers[1].blobs) == 5
    x = feed(net)
    close(net.forward()["bn"], five.forward(data=x)["bn"])
    make(tmp_path, SMALL.replace('"ip"', '"bn"')).save(tmp_path / "two.caffemodel")
    with pytest.raises(ModelError, match=r"layer 'bn' .*has 2 blobs, expected 5"):
        net.copy_from(tmp_path / "two.caffemodel")


def test_the_seed_decides_the_fillers(tmp_path: Path) -> None:
    made = []
    for seed in (1, 1, 2):
        caffe.set_random_seed(seed)
        made.append(make(tmp_path).params["conv"][0].data)
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).any()


# -- what is wrong is said ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: caffe.Net("nowhere.prototxt", caffe.TEST), MissingFileError, "nowhere.prototxt: does not exist"),
        (lambda f: caffe.Net(f, "nowhere.caffemodel", caffe.TEST), MissingFileError, "nowhere.caffemodel"),
        (lambda f: caffe.Net(f, 7), UsageError, "phase is 7, expected caffe.TRAIN or caffe.TEST"),
        (lambda f: caffe.Net(f), UsageError, "there is no phase"),
        (lambda f: caffe.Net(f, caffe.TEST, wieghts="x"), UsageError, "wieghts"),
    ],
)
def test_wrong_arguments(tmp_path: Path, call: Any, error: type[BridgeError], message: str) -> None:
    with pytest.raises(error, match=message):
        call(write(tmp_path, SMALL))


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ('type: "Softmax"', 'type: "Sofmax"', UnsupportedLayerError, "layer 'prob' .*unknown layer type 'Sofmax'"),
        ('bottom: "pool"', 'bottom: "pol"', ModelError, "layer 'ip' .*reads blob 'pol'(.|\n)*did you mean 'pool'"),
        ("kernel_size: 3", "kernel_size: 30", ModelError, "layer 'conv'"),
        ("num_output: 4", "num_output: 0", ModelError, "layer 'conv'"),
        ("name: \"conv\"", 'name: "conv" param { } param { } param { }', ModelError, "'conv'.*3 param, .*most 2"),
        ("kernel_size: 3", "kernel_size: 3 strid: 2", UnknownFieldError, "'conv'.*strid: 2(.|\n)*mean 'stride'"),
        ('name: "conv"', 'name: "conv" botom: "data"', UnknownFieldError, "layer 'conv'.*botom(.|\n)*take it out of"),
        ('top: "ip"', 'top: "pool2" propagate_down: true propagate_down: true', ModelError, "reads blob 'ip'"),
    ],
)  # fmt: skip
def test_a_wrong_net_names_the_layer(
    tmp_path: Path, old: str, new: str, error: type[BridgeError], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(tmp_path, SMALL.replace(old, new, 1))


def test_a_solver_is_no_net(tmp_path: Path) -> None:
    with pytest.raises(UnknownFieldError, match=r"'base_lr: 0.01' is in no known caffe\.proto"):
        make(tmp_path, 'base_lr: 0.01 lr_policy: "fixed"')


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    make(tmp_path, SMALL.replace("num_output: 5", "num_output: 6")).save(tmp_path / "other.caffemodel")
    net = make(tmp_path)
    before = net.params["conv"][0].data.copy()
    with pytest.raises(ModelError, match=r"other.caffemodel: layer 'ip' .*blob 0 is 6 x 36, expected 5 x 36"):
        net.copy_from(tmp_path / "other.caffemodel")
    np.testing.assert_array_equal(net.params["conv"][0].data, before)


def test_the_net_stays_usable(tmp_path: Path) -> None:
    net = make(tmp_path)
    x = feed(net)
    expected = net.forward()["prob"].copy()
    with pytest.raises(UsageError, match="do not match net inputs: got image; expected data"):
        net.forward(image=x)
    with pytest.raises(UsageError, match="not batch sized: 'data' got 3 x 3 x 8 x 8, expected 2 x 3 x 8 x 8"):
        net.forward(data=np.zeros((3, 3, 8, 8)))
    with pytest.raises(UsageError, match="'data' got 2 x 3 x 9 x 8"):
        net.forward(data=np.zeros((2, 3, 9, 8)))
    with pytest.raises(NotFoundError, match=r"no layer 'pol'(.|\n)*did you mean 'pool'"):
        net.forward(start="pol")
    with pytest.raises(NotFoundError, match="no blob 'fc8'"):
        net.forward(blobs=["fc8"])
    with pytest.raises(UsageError, match="expected whole numbers"):
        net.blobs["data"].reshape(1.5, 3)
    net.blobs["data"].reshape(2, 3, 12, 8)
    with pytest.raises(ModelError, match="layer 'ip'"):
        net.forward()
    net.blobs["data"].reshape(2, 3, 8, 8)
    close(net.forward(data=x)["prob"], expected)


def test_losses_in_the_phase_test(tmp_path: Path) -> None:
    need("chainer")
    net = make(tmp_path, TRAINED)
    net.blobs["label"].data[...] = [0, 1, 2, 0, 1, 2]
    out = net.forward()
    assert set(out) == {"loss", "accuracy"}
    ip, label = net.blobs["ip"].data, net.blobs["label"].data.astype(int)
    logs = ip - np.log(np.exp(ip).sum(1, keepdims=True))
    close(out["loss"], -logs[np.arange(6), label].mean())
    assert net.blob_loss_weights["loss"] == 2
    assert out["accuracy"] == pytest.approx((ip.argmax(1) == label).mean())
    assert (net.blobs["label"].data == [0, 1, 2, 0, 1, 2]).all()  # a constant filler fills once


def test_a_loss_that_a_fork_sums_up_otherwise(tmp_path: Path) -> None:
    text = TRAINED.replace("loss_weight: 2", "loss_param { pre_fixed_normalizer: 2 }")
    with pytest.raises(UnsupportedLayerError, match=r"layer 'loss' .*loss_param has 'pre_fixed_normalizer'"):
        make(tmp_path, text)
    make(tmp_path, TRAINED.replace("loss_weight: 2", "loss_param { ignore_label: 1 }"))


def test_gpu_mode_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.chain.devices.cuda_problem", lambda: "cupy is not installed")
    for call in (caffe.set_mode_gpu, lambda: caffe.set_device(0)):
        with pytest.raises(MissingExtraError, match=r"cannot use GPU: cupy is not installed(.|\n)*--cpu SCRIPT"):
            call()
