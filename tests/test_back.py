"""From a net to a chain and back: what training did not change comes back bit by bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st

import bridge
from bridge.errors import BridgeError, UnsupportedLayerError, UsageError
from bridge.schema import Net
from tests import nets
from tests.conftest import FASHION, GOLDEN, TRAINING, need
from tests.strategies import CASES
from tests.strategies.nets import whole_nets
from tests.test_equivalence import ENCODINGS, encoding_id, write


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for all examples of a test; each writes its files anew."""
    need("chainer")
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def load(case: Path) -> Net:
    return bridge.load(case / "deploy.prototxt", next(case.glob("*.caffemodel")))


def blobs(net: Net) -> dict[tuple[int, str, str], tuple[Any, tuple[int, ...], bytes]]:
    """Type, shape and bits of every blob."""
    return {
        (index, layer.name, role): (blob.dtype, blob.shape, blob.numpy().tobytes())
        for index, layer in enumerate(net.layers)
        for role, blob in layer.blobs.entries()
    }


def chain_of(net: Net) -> Any:
    need("chainer")
    try:
        return bridge.build_chain(net)
    except UnsupportedLayerError as error:
        pytest.skip(str(error.args[0]))


# ---- without training -------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*GOLDEN, FASHION], ids=lambda path: path.name)
def test_every_recorded_net_comes_back(case: Path, tmp_path: Path) -> None:
    net = load(case)
    back = bridge.from_chain(chain_of(net), net)
    assert blobs(back) == blobs(net)
    for path in (tmp_path / "a.caffemodel", tmp_path / "b.caffemodel"):
        bridge.save(net if path.stem == "a" else back, path)
    assert (tmp_path / "a.caffemodel").read_bytes() == (tmp_path / "b.caffemodel").read_bytes()


@pytest.mark.parametrize(("generation", "values", "shape", "readers"), ENCODINGS, ids=encoding_id)
@settings(max_examples=25)
@given(data=st.data())
def test_any_net_in_any_encoding_comes_back(
    folder: Path, generation: str, values: str, shape: str, readers: Any, data: st.DataObject
) -> None:
    whole = data.draw(whole_nets(generation, awkward=True))
    note(whole.text)
    assume(whole.shapes)
    (folder / "deploy.prototxt").write_text(whole.text)
    stored = write(whole, folder / "net.caffemodel", generation, values, shape)
    net = load(folder)
    back = bridge.from_chain(bridge.build_chain(net), net)
    assert blobs(back) == blobs(net)
    found = {name: [blob.numpy().tobytes() for _, blob in back[name].blobs.entries()] for name in stored}
    assert found == {name: [array.tobytes() for array in arrays] for name, arrays in stored.items()}


def test_the_file_may_be_gone_when_the_chain_is_built(tmp_path: Path) -> None:
    """The chain holds copies, not views of a mapped file."""
    need("chainer")
    net = load(FASHION)
    bridge.save(net, tmp_path / "a.caffemodel")
    mapped = bridge.load(FASHION / "deploy.prototxt", tmp_path / "a.caffemodel")
    chain = bridge.build_chain(mapped)
    del mapped
    (tmp_path / "a.caffemodel").write_bytes(b"\0" * (tmp_path / "a.caffemodel").stat().st_size)
    assert blobs(bridge.from_chain(chain, net)) == blobs(net)
    assert all(param.array.flags.owndata and param.array.flags.writeable for param in chain.params())


# ---- after training ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CASES))
@settings(max_examples=10)
@given(data=st.data())
def test_what_changed_comes_back_changed_and_the_rest_as_it_was(name: str, data: st.DataObject) -> None:
    need("chainer")
    case = data.draw(CASES[name])
    net = case.net()
    try:
        chain = bridge.build_chain(net)
    except UnsupportedLayerError:
        return
    index = len(net.layers) - 1
    roles = chain.roles(index)
    moved = data.draw(st.lists(st.sampled_from(roles), unique=True)) if roles else []
    for role in moved:
        array = chain.array(index, role)
        array = getattr(array, "array", array)
        array += 1
    back = bridge.from_chain(chain, net)
    for role in roles:
        old, new = net.layers[index].blobs.blob(role), back.layers[index].blobs.blob(role)
        if role in moved and old.size:
            assert np.array_equal(new.numpy(), old.numpy() + np.float32(1))
            assert new.shape == old.shape
        else:
            assert new is old
    again = bridge.build_chain(back)
    inputs = case.inputs()
    assert all(map(same, outputs(chain, inputs), outputs(again, inputs)))


def outputs(chain: Any, inputs: Any) -> list[np.ndarray]:
    from bridge.chain.functions import chainer

    with chainer.using_config("train", False), np.errstate(all="ignore"):
        values = chain.run(inputs)
    return [values[name].array for name in chain.net_outputs if name in values]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def test_later_training_does_not_reach_the_net() -> None:
    need("chainer")
    net = load(FASHION)
    chain = bridge.build_chain(net)
    chain.child("conv1").W.array += 1
    back = bridge.from_chain(chain, net)
    before = blobs(back)
    for param in chain.params():
        param.array[...] = 0
    assert blobs(back) == before


@pytest.mark.parametrize("name", ["net_alexnet_mini_double", "conv_group2_double", "bn_default_double"])
def test_trained_values_of_a_double_file_are_single(name: str) -> None:
    net = load(next(case for case in GOLDEN if case.name == name))
    chain = chain_of(net)
    for param in chain.params():
        param.array += 1
    for index, layer in enumerate(bridge.from_chain(chain, net)):
        for role, blob in layer.blobs.entries():
            trained = hasattr(chain.array(index, role), "array")
            assert blob.dtype == (np.float32 if trained else np.float64)


def test_a_step_of_training_goes_all_the_way_to_a_caffemodel(tmp_path: Path) -> None:
    need("chainer")
    from bridge.chain.functions import chainer

    recipe = TRAINING / "sgd_fixed"
    net = bridge.load(recipe / "train.prototxt", recipe / "start.caffemodel", phase="TRAIN")
    chain = bridge.build_chain(net)
    optimizer = chainer.optimizers.SGD(0.01).setup(chain)
    with np.load(TRAINING / "batches.npz") as batches:
        x, t = batches["x"][0].astype("f") / 256, batches["y"][0]
    optimizer.update(lambda: chain.loss({"data": x, "label": t}))
    bridge.save(bridge.from_chain(chain, net), tmp_path / "end.caffemodel")
    end = bridge.load(tmp_path / "end.caffemodel", phase="TRAIN")
    for name in ("conv1", "conv2", "conv3", "fc6", "fc8_new"):
        assert np.array_equal(end[name].weight, chain.child(name).W.array)
        assert not np.array_equal(end[name].weight, net[name].weight)


# ---- shared parameters ------------------------------------------------------------------------

PERMISSIVE = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "y" param { name: "w" } inner_product_param { num_output: 3 } }
layer { name: "b" type: "InnerProduct" bottom: "y" top: "z"
  param { name: "w" share_mode: PERMISSIVE } inner_product_param { num_output: 4 } }
"""


def test_one_parameter_under_two_shapes(tmp_path: Path) -> None:
    need("chainer")
    net = nets.make(PERMISSIVE)
    chain = bridge.build_chain(net)
    assert [path for path, _ in chain.namedparams()] == ["/a/W", "/a/b", "/b/b"]
    x = np.float32([[1, 2, 3, 4]])
    expected = (x @ net["a"].weight.T + net["a"].bias) @ net["b"].weight.T + net["b"].bias
    np.testing.assert_allclose(chain(x).array, expected, rtol=1e-6)
    assert net["b"].weight.shape == (4, 3)
    assert blobs(bridge.from_chain(chain, net)) == blobs(net)
    chain.child("a").W.array += 1
    back = bridge.from_chain(chain, net)
    assert np.array_equal(back["b"].weight, net["b"].weight + 1)
    bridge.save(back, tmp_path / "chain.npz", format="chainer")
    again = bridge.load(tmp_path / "chain.npz")
    assert blobs(again) == blobs(back)


def test_both_gradients_reach_a_shared_parameter() -> None:
    need("chainer")
    net = nets.make(PERMISSIVE)
    chain = bridge.build_chain(net)
    x = np.float32([[1, 2, 3, 4]])
    chain.cleargrads()
    from bridge.chain.functions import chainer

    chainer.functions.sum(chain(x)).backward()
    y = x @ net["a"].weight.T + net["a"].bias
    first = net["b"].weight.sum(axis=0)[:, None] * x
    np.testing.assert_allclose(chain.child("a").W.grad, first + np.repeat(y, 4, 0).reshape(3, 4), rtol=1e-5)


def test_copies_that_a_file_has_of_a_shared_parameter_are_forgotten_once_it_is_trained() -> None:
    net = load(next(case for case in GOLDEN if case.name == "net_siamese_shared"))
    chain = chain_of(net)
    assert bridge.from_chain(chain, net).shared == net.shared
    next(iter(chain.params())).array[...] += 1
    assert bridge.from_chain(chain, net).shared == {}


# ---- wrong calls ------------------------------------------------------------------------------


def test_a_chain_of_another_net_is_refused() -> None:
    need("chainer")
    net = load(FASHION)
    other = load(next(case for case in GOLDEN if case.name == "net_alexnet_mini"))
    with pytest.raises(UsageError, match="not built from this net"):
        bridge.from_chain(bridge.build_chain(other), net)


def test_a_chain_with_another_head_is_refused_with_both_shapes() -> None:
    need("chainer")
    first, second = (nets.make(PERMISSIVE.replace("num_output: 4", f"num_output: {n}").replace('param { name: "w" }', "")) for n in (4, 8))  # fmt: skip # noqa: E501
    with pytest.raises(UsageError, match=r"layer 'b' \(InnerProduct\): blob 'weight' is 4 x 3, in the chain 8 x 3"):
        bridge.from_chain(bridge.build_chain(second), first)


@pytest.mark.parametrize("arguments", [{"rename": {"fc9": "x"}}, {"skip": ["fc9"]}, {"by": "shape"}])
def test_arguments_for_a_users_chain_are_checked(arguments: Any) -> None:
    need("chainer")
    from bridge.chain.functions import chainer

    with pytest.raises(BridgeError, match=r"fc9|'name' or 'order'"):
        bridge.from_chain(chainer.Chain(), load(FASHION), **arguments)
