"""The way back, against what the real Caffe recorded, and what it goes through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge import caffe
from bridge.errors import MissingExtraError, UsageError
from tests.caffe_door.nets import FORKED, SMALL, TRAINED, close, feed, make, plain, write
from tests.conftest import FIXTURES, need
from tests.test_gradients import CAFFES_OWN, RECORDED


def test_fixtures_are_there() -> None:
    assert len(RECORDED) > 100


@pytest.mark.parametrize("case", sorted(RECORDED.keys() - CAFFES_OWN.keys()))
def test_diffs_are_what_caffe_recorded(case: str, tmp_path: Path) -> None:
    need("chainer")
    folder = FIXTURES / "golden" / case
    text = "force_backward: true\n" + (folder / "deploy.prototxt").read_text()
    net = caffe.Net(write(tmp_path, text), caffe.TEST, weights=str(folder / "weights.caffemodel"))
    with np.load(folder / "io.npz") as file:
        for key in file:
            if key.startswith("in:"):
                net.blobs[key[3:]].reshape(*file[key].shape)
                net.blobs[key[3:]].data[...] = file[key]
    net.forward()
    for name, diff in RECORDED[case].items():
        if name.startswith("top:"):
            net.blobs[name[4:]].diff[...] = diff
    net.backward()
    for name, expected in RECORDED[case].items():
        kind, _, rest = name.partition(":")
        if kind == "top" or name == "bottom:cont":  # Caffe has no gradient of LSTM's and RNN's flags
            continue
        layer, _, index = rest.rpartition(":")
        mine = net.blobs[rest].diff if kind == "bottom" else net.params[layer][int(index)].diff
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(mine.reshape(expected.shape), expected, 1e-4, 1e-4 * scale, err_msg=name)


def test_backward_from_a_layer_and_its_blobs(tmp_path: Path) -> None:
    """As DeepDream does it: what it reads and writes between the passes counts."""
    need("chainer")
    net = make(tmp_path)
    for seed in range(3):
        x = feed(net, seed)
        net.forward(end="pool")
        pool = net.blobs["pool"]
        pool.diff[...] = pool.data
        diffs = net.backward(start="pool", diffs=["conv"])
        assert set(diffs) == {"data", "conv"}
        expected = plain(net, x)
        places = expected["conv"] == expected["pool"].repeat(2, 2).repeat(2, 3)
        close(net.blobs["conv"].diff, np.where(places & (expected["conv"] > 0), expected["conv"], 0))
        h = 1e-2
        moved = {**plain(net, x + h * diffs["data"])}
        rise = (np.square(moved["pool"]).sum() - np.square(expected["pool"]).sum()) / 2
        assert rise == pytest.approx(h * np.square(diffs["data"]).sum(), rel=0.1)


def test_backward_after_a_layer_in_place_on_the_input(tmp_path: Path) -> None:
    """The first way back computes the layers again: from the input as it was, not as the layer left it."""
    need("chainer", "onnxruntime")
    negated = 'name: "neg" type: "Power" bottom: "data" top: "data" power_param { scale: -2 } } layer { name: "conv"'
    net = make(tmp_path, SMALL.replace('name: "conv"', negated, 1))
    x = feed(net)
    net.forward()
    net.blobs["ip"].diff[...] = 1
    net.backward(start="ip")
    close(net.blobs["conv"].data, plain(net, -2 * x)["conv"])
    close(net.params["ip"][0].diff, plain(net, -2 * x)["pool"].reshape(2, -1).sum(0)[None].repeat(5, 0))


def test_backward_without_forward(tmp_path: Path) -> None:
    need("chainer")
    net = make(tmp_path)
    net.blobs["pool"].data[...] = 1
    net.blobs["ip"].diff[...] = np.arange(10).reshape(2, 5)
    found = net.backward(start="ip", end="ip")
    close(found["pool"].reshape(2, -1), net.blobs["ip"].diff @ net.params["ip"][0].data)
    close(net.params["ip"][0].diff, np.repeat(net.blobs["ip"].diff.sum(0)[:, None], 36, 1))


def test_parameters_diffs_add_up(tmp_path: Path) -> None:
    need("chainer")
    net = make(tmp_path, TRAINED, caffe.TRAIN)
    net.forward()
    net.backward()
    once = net.params["ip"][0].diff.copy()
    assert once.any()
    net.backward()
    close(net.params["ip"][0].diff, 2 * once)
    held = net.params["ip"][0].diff
    net.clear_param_diffs()
    assert not held.any()


def test_the_loss_weight_is_the_losss_diff(tmp_path: Path) -> None:
    need("chainer")
    net = make(tmp_path, TRAINED, caffe.TRAIN)
    assert net.blobs["loss"].diff == 2
    loss = net._forward(0, len(net.layers) - 1)
    assert loss == pytest.approx(2 * float(net.blobs["loss"].data))


def test_shared_memory_of_splits_adds_up(tmp_path: Path) -> None:
    need("chainer")
    net = make(tmp_path, "force_backward: true\n" + FORKED)
    x = feed(net)
    net.forward()
    net.blobs["sum"].diff[...] = 1
    net.backward()
    a = x @ net.params["a"][0].data.T
    close(net.blobs["data"].diff, 5 * (a > 0) @ net.params["a"][0].data)


def test_only_what_leads_to_a_loss_is_gone_through(tmp_path: Path) -> None:
    need("chainer")
    net = make(tmp_path, SMALL.replace("force_backward: true", ""))
    feed(net)
    net.forward()
    net.blobs["prob"].diff[...] = 1
    net.backward()
    assert not net.params["ip"][0].diff.any()
    assert [node.need_backward for node in net.nodes] == [False] * 6
    net = make(tmp_path, TRAINED.replace('bottom: "data" top: "ip"', 'bottom: "data" top: "ip" param { lr_mult: 0 }'))
    nodes = {node.name: node for node in net.nodes}
    assert {name for name, node in nodes.items() if node.need_backward} == {"ip", "ip_ip_0_split", "loss"}
    assert nodes["ip"].param_propagate == [False, True]
    assert nodes["loss"].propagate == [True, False]


def test_top_diffs_as_arguments(tmp_path: Path) -> None:
    need("chainer")
    net = make(tmp_path)
    x = feed(net)
    blobs, diffs = net.forward_backward_all(blobs=["pool"], diffs=["ip"], data=x, prob=np.ones((2, 5)))
    assert set(blobs) == {"prob", "pool"}
    assert set(diffs) == {"data", "ip"}
    assert np.abs(diffs["ip"]).max() < 1e-6  # the probabilities always sum to one
    with pytest.raises(UsageError, match="do not match net outputs"):
        net.backward(ip=np.ones((2, 5)))


def test_without_chainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnxruntime")
    from bridge.caffe import engines

    monkeypatch.setattr(engines, "_installed", lambda package: package == "onnxruntime")
    net = make(tmp_path)
    x = feed(net)
    net.forward()
    with pytest.raises(MissingExtraError, match=r"layer 'prob' .*Chainer is not installed(.|\n)*chainer"):
        net.backward()
    close(net.forward()["prob"], plain(net, x)["prob"])


def test_without_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.caffe import engines

    monkeypatch.setattr(engines, "_installed", lambda package: False)
    net = make(tmp_path)
    with pytest.raises(MissingExtraError, match=r"neither onnxruntime nor Chainer(.|\n)*runtime"):
        net.forward()


def test_training_by_hand(tmp_path: Path) -> None:
    """Written parameters count in the next pass, thousands of times."""
    need("chainer")
    caffe.set_random_seed(0)
    net: Any = make(tmp_path, TRAINED.replace("gaussian", "constant").replace("std: 1", "value: 1"), caffe.TRAIN)
    net.blobs["data"].data[...] = np.random.default_rng(0).standard_normal((6, 4))
    net.blobs["label"].data[...] = [0, 1, 2, 0, 1, 2]
    losses = []
    for _ in range(60):
        losses.append(float(net.forward()["loss"]))
        net.clear_param_diffs()
        net.backward()
        for blob in net.params["ip"]:
            blob.data[...] -= 0.3 * blob.diff
    assert losses[-1] < losses[0] / 3


TIES = """
force_backward: true
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 7 dim: 6 } } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" top: "mask"
  pooling_param { kernel_size: 3 stride: 2 pad: 1 } }
"""


def _first_maxima(x: np.ndarray) -> np.ndarray:
    """Of each window of TIES the place in its plane of the first maximum, in the order of rows."""
    places = np.zeros((*x.shape[:2], 4, 4), np.int64)
    for n, c, i, j in np.ndindex(places.shape):
        rows, columns = (range(max(2 * k - 1, 0), min(2 * k + 2, size)) for k, size in ((i, 7), (j, 6)))
        window = [(x[n, c, row, column], 6 * row + column) for row in rows for column in columns]
        places[n, c, i, j] = next(at for value, at in window if value == max(window)[0])
    return places


@pytest.mark.parametrize("plane", [0, 5, -1, None])
@pytest.mark.parametrize("engine", ["onnxruntime", "chainer"])
def test_of_equal_values_max_pooling_takes_the_first(
    tmp_path: Path, plane: float | None, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Caffe's loop does, where a later value counts only if it is greater. The gradient goes there too."""
    need(engine)
    from bridge.caffe import engines

    monkeypatch.setattr(engines, "_installed", lambda package: package == engine)
    net = make(tmp_path, TIES)
    x = np.random.default_rng(0).integers(0, 3, (1, 2, 7, 6)) if plane is None else np.full((1, 2, 7, 6), plane)
    net.blobs["data"].data[...] = x
    net.forward()
    places = _first_maxima(x)
    np.testing.assert_array_equal(net.blobs["mask"].data, places)
    if engine == "chainer":
        wanted = np.zeros((2, 42), np.float32)
        for channel, at, weight in zip(np.arange(2).repeat(16), places.ravel(), range(1, 33), strict=True):
            wanted[channel, at] += weight
        net.blobs["pool"].diff[...] = np.arange(1, 33).reshape(1, 2, 4, 4)
        net.backward()
        np.testing.assert_array_equal(net.blobs["data"].diff.reshape(2, 42), wanted)
