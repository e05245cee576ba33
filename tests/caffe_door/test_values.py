"""What is written into blobs and parameters counts, and all blobs can be read, whatever engine ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge import caffe
from bridge.caffe import engines
from tests.caffe_door.nets import FORKED, SMALL, close, feed, make, plain
from tests.conftest import need


@pytest.fixture(params=["onnxruntime", "chainer"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test runs with one engine alone."""
    need(request.param)
    monkeypatch.setattr(engines, "_installed", lambda package: package == request.param)
    return str(request.param)


def test_all_blobs(tmp_path: Path) -> None:
    net = make(tmp_path)
    x = feed(net)
    net.forward()
    for name, expected in plain(net, x).items():
        close(net.blobs[name].data, expected)


@pytest.mark.parametrize("name", ["conv", "pool", "ip", "prob"])
def test_one_blob_of_an_earlier_pass(tmp_path: Path, name: str) -> None:
    net = make(tmp_path)
    x = feed(net)
    net.forward()
    feed(net, seed=1)  # what is in the input now is another pass's
    close(net.blobs[name].data, plain(net, x)[name])


def test_blobs_are_of_the_parameters_of_their_pass(tmp_path: Path) -> None:
    net = make(tmp_path)
    x = feed(net)
    net.forward()
    expected = plain(net, x)
    net.params["conv"][0].data[...] *= 2
    net.params["ip"][1].data[0] = 9
    for name, values in expected.items():
        close(net.blobs[name].data, values)
    net.forward()
    for name, values in plain(net, x).items():
        close(net.blobs[name].data, values)


def test_a_part_of_the_net_after_the_parameters_changed(tmp_path: Path) -> None:
    net = make(tmp_path)
    x = feed(net)
    net.forward()
    before = plain(net, x)
    net.params["conv"][0].data[...] = 0
    net.params["ip"][0].data[...] *= 3
    net.forward(start="ip")
    close(net.blobs["pool"].data, before["pool"])
    close(net.blobs["ip"].data, before["pool"].reshape(2, -1) @ net.params["ip"][0].data.T)


def test_writes_through_an_array_that_was_kept(tmp_path: Path) -> None:
    net = make(tmp_path)
    x = feed(net)
    weight, bias = (blob.data for blob in net.params["conv"])
    inner = weight[1:, :2]
    expected = weight.copy()
    for step in range(6):
        inner[...] += 0.1
        expected[1:, :2] += 0.1
        bias[step % 4] -= 0.2
        out = net.forward()["prob"].copy()
        assert np.shares_memory(net.params["conv"][0].data, weight)
        np.testing.assert_array_equal(net.params["conv"][0].data, expected)
        close(out, plain(net, x)["prob"])
    first = net.forward()["prob"].copy()
    np.testing.assert_array_equal(net.forward()["prob"], first)


def test_an_array_that_was_kept_sees_the_next_pass(tmp_path: Path) -> None:
    net = make(tmp_path)
    feed(net)
    kept = {name: blob.data for name, blob in net.blobs.items()}
    part = net.blobs["conv"].data[0, 1]
    for seed in range(3):
        x = feed(net, seed)
        out = net.forward()
        for name, expected in plain(net, x).items():
            close(kept[name], expected)
        close(part, plain(net, x)["conv"][0, 1])
        assert np.shares_memory(out["prob"], kept["prob"])


def test_what_was_read_before_is_right_in_every_pass(tmp_path: Path) -> None:
    net = make(tmp_path)
    for seed, names in enumerate((["conv"], ["conv", "ip"], [], ["pool"], ["conv"], ["ip", "pool", "conv"])):
        x = feed(net, seed)
        net.forward()
        expected = plain(net, x)
        for name in names:
            close(net.blobs[name].data, expected[name])


def test_permuted_weights_are_noticed(tmp_path: Path) -> None:
    """The sum of the values stays the same."""
    net = make(tmp_path)
    x = feed(net)
    net.forward()
    weight = net.params["conv"][0].data
    weight[...] = weight[:, ::-1].copy()
    del weight
    close(net.forward()["prob"], plain(net, x)["prob"])


def test_in_place_layers_and_parts(tmp_path: Path) -> None:
    net = make(tmp_path)
    x = feed(net)
    out = net.forward(end="conv")
    assert set(out) == {"conv"}
    assert out["conv"].min() < 0
    net.forward(start="relu", end="relu")
    close(net.blobs["conv"].data, plain(net, x)["conv"])
    net.blobs["conv"].data[...] = 1
    out = net.forward(start="pool")
    assert (net.blobs["pool"].data == 1).all()
    close(out["prob"].sum(1), np.ones(2))


def test_in_place_on_the_input(tmp_path: Path) -> None:
    net = make(tmp_path, SMALL.replace('name: "conv"', 'name: "neg" type: "Power" bottom: "data" top: "data"'
               ' power_param { scale: -2 } } layer { name: "conv"', 1))  # fmt: skip
    x = feed(net)
    net.forward()
    close(net.blobs["data"].data, -2 * x)
    close(net.blobs["pool"].data, plain(net, -2 * x)["pool"])


def test_split_blobs(tmp_path: Path) -> None:
    net = make(tmp_path, FORKED)
    x = feed(net)
    net.forward()
    a = np.maximum(x @ net.params["a"][0].data.T + net.params["a"][1].data, 0)
    for name, factor in (("sum", 5), ("a_r_0_split_0", 1), ("a_r_0_split_1", 1), ("a", 1), ("b", 2), ("c", 3)):
        close(net.blobs[name].data, factor * a)


def test_reshape(tmp_path: Path) -> None:
    net = make(tmp_path)
    feed(net)
    net.forward()
    net.blobs["data"].reshape(5, 3, 8, 8)
    net.reshape()
    assert net.blobs["prob"].data.shape == (5, 5)
    x = feed(net)
    close(net.forward()["prob"], plain(net, x)["prob"])
    net.blobs["data"].reshape(1, 3, 8, 8)
    x = feed(net)
    close(net.forward()["prob"], plain(net, x)["prob"])


def test_a_smaller_shape_keeps_the_first_values(tmp_path: Path) -> None:
    net = make(tmp_path)
    blob = net.blobs["data"]
    blob.data[...] = 1
    blob.reshape(1, 3, 8, 8)
    assert (blob.data == 1).all()
    blob.reshape(4, 3, 8, 8)
    assert not blob.data.any()


def test_forward_all(tmp_path: Path) -> None:
    net = make(tmp_path)
    x = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    out = net.forward_all(blobs=["pool"], data=x)
    expected = plain(net, x)
    assert set(out) == {"prob", "pool"}
    close(out["prob"], expected["prob"])
    close(out["pool"], expected["pool"])


def test_hooks_see_each_layer(tmp_path: Path) -> None:
    net = make(tmp_path)
    x = feed(net)
    seen: list[tuple[str, Any]] = []

    def after(index: int) -> None:
        seen.append(("after", index))
        if net._layer_names[index] == "pool":
            net.blobs["pool"].data[...] *= 2

    net.before_forward(lambda index: seen.append(("before", index)))
    net.after_forward(after)
    net.forward()
    assert seen[:3] == [("before", 0), ("after", 0), ("before", 1)]
    assert seen[-1] == ("after", 5)
    close(net.blobs["ip"].data, 2 * plain(net, x)["ip"])  # the bias is 0


def test_outputs_can_be_fed_back(tmp_path: Path) -> None:
    """A pass reads its input before it writes its output, though one is the other's memory."""
    net = make(tmp_path, FORKED.replace("num_output: 3", "num_output: 4"))
    x = feed(net)
    once = net.forward(data=x)["sum"].copy()
    twice = net.forward(data=net.blobs["sum"].data)["sum"]
    other = net.forward(data=once)["sum"]
    np.testing.assert_array_equal(twice, other)


def test_deep_copies_of_nothing(tmp_path: Path) -> None:
    """A net whose blobs are all silenced has no outputs."""
    net = make(tmp_path, SMALL + 'layer { name: "end" type: "Silence" bottom: "prob" }')
    x = feed(net)
    assert net.forward() == {}
    close(net.blobs["prob"].data, plain(net, x)["prob"])
    assert net.phase == caffe.TEST
