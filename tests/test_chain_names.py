"""The names of a chain's children: every name of a layer has one, and comes back."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bridge
from bridge.errors import NotFoundError
from bridge.schema import Net
from tests.conftest import need
from tests.strategies.files import NAMES
from tests.test_chain import IN_PLACE, RESERVED, built, equal, state


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


# ---- names ------------------------------------------------------------------------------------


def named_net(names: list[str]) -> Net:
    """A chain of fully connected layers of these names, with values that tell them apart."""
    from bridge.layers import build_layer
    from bridge.schema import Blob
    from bridge.schema.message import Message

    layers = [build_layer(Message("", name="data", type="Input", top="blob", input_param=Message("", shape=Message("", dim=[1, 1]))))]  # fmt: skip # noqa: E501
    for index, name in enumerate(names):
        params = Message("", num_output=1, bias_term=False)
        wiring = {"bottom": "blob", "top": "blob", "inner_product_param": params}
        definition = Message("", name=name, type="InnerProduct", **wiring)
        layers.append(build_layer(definition, [Blob.of(np.float32([[index + 1]]))]))
    return Net("named", tuple(layers))


@given(st.lists(st.one_of(NAMES, st.sampled_from(RESERVED), st.text(max_size=6)), max_size=6))
def test_children_are_named_after_their_layers_reversibly(names: list[str]) -> None:
    need("chainer")
    from bridge.chain.names import unescape

    chain = bridge.build_chain(named_net(names))
    children = [name for name in vars(chain) if name in chain._children]
    assert len(set(children)) == len(names)
    assert [unescape(child) for child in children] == names
    assert [chain[child].W.array.item() for child in children] == list(range(1, len(names) + 1))
    for name in names:
        assert chain.child(name).W.array == names.index(name) + 1
    assert not any("/" in child or "\0" in child for child in children)


@given(st.one_of(NAMES, st.sampled_from(RESERVED), st.text(max_size=6)), st.integers(1, 12))
def test_no_two_names_have_one_escape(name: str, occurrence: int) -> None:
    need("chainer")
    from bridge.chain.names import escape, unescape

    child = escape(name, occurrence)
    assert unescape(child) == name
    assert escape(unescape(child), occurrence) == child
    assert len({escape(name, n) for n in range(1, 13)}) == 12


def test_escapes_that_are_documented() -> None:
    need("chainer")
    from bridge.chain.names import escape

    assert escape("conv1") == "conv1"
    assert escape("conv1/3x3") == "conv1%2F3x3"
    assert escape("params") == "params%"
    assert escape("conv1", 2) == "conv1%~2"


def test_every_attribute_of_a_chain_is_known_as_taken() -> None:
    from bridge.chain.names import _taken

    chain = built(IN_PLACE)
    public = {name for name in vars(chain) if not name.startswith("_")} - chain._children
    assert public <= _taken()


@settings(max_examples=30)
@given(st.lists(st.one_of(NAMES, st.sampled_from(RESERVED)), min_size=1, max_size=5))
def test_any_names_survive_chainers_archives(names: list[str]) -> None:
    need("chainer")
    from bridge.chain.functions import chainer

    net = named_net([name.replace("\ud800", "?") for name in names])  # no file system takes half a character
    chain, other = bridge.build_chain(net), bridge.build_chain(net)
    for param in other.params():
        param.array[...] = 0
    archive = io.BytesIO()
    chainer.serializers.save_npz(archive, chain)
    archive.seek(0)
    chainer.serializers.load_npz(archive, other)
    assert equal(state(chain), state(other))


@settings(max_examples=20)
@given(st.lists(st.sampled_from([name for name in RESERVED if name != "\ud800"]), min_size=1, max_size=5))
def test_any_names_survive_hdf5(names: list[str]) -> None:
    need("chainer", "h5py")
    import tempfile

    from bridge.chain.functions import chainer

    net = named_net(names)
    chain, other = bridge.build_chain(net), bridge.build_chain(net)
    for param in other.params():
        param.array[...] = 0
    with tempfile.TemporaryDirectory() as folder:
        chainer.serializers.save_hdf5(f"{folder}/a.h5", chain)
        chainer.serializers.load_hdf5(f"{folder}/a.h5", other)
    assert equal(state(chain), state(other))


def test_a_layer_without_arrays_has_no_child() -> None:
    chain = built(IN_PLACE)
    with pytest.raises(NotFoundError, match="layer 'relu' has no arrays of its own"):
        chain.child("relu")
