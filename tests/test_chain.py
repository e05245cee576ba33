"""The built chain: its names, its copies, its files, its devices; and Caffe's running statistics."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import ModelError, NotFoundError, UnsupportedLayerError, UsageError
from bridge.schema import Net
from tests import nets
from tests.conftest import FASHION, GOLDEN, need
from tests.strategies import CASES
from tests.strategies.files import NAMES


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


RESERVED = ["params", "name", "copy", "links", "children", "forward", "xp", "device", "run", "child", "loss",
            "net_inputs", "net_outputs", "_params", "_layers", "", ".", "..", "conv1/3x3", "/", "a/b/", "W", "file",
            "conv1%2F3x3", "params%", "x%~2", "%", "%%", "a\\b", "a:b", "a b", "a.npy", "\x00", "é", "層",
            "\ud800"]  # fmt: skip
"""Names that Chainer, its archives, or our own escapes would stumble over."""


def fashion() -> Net:
    need("chainer")
    return bridge.load(FASHION / "deploy.prototxt", FASHION / "fashion_alexnet.caffemodel")


def golden(name: str) -> Net:
    need("chainer")
    case = next(case for case in GOLDEN if case.name == name)
    return bridge.load(case / "deploy.prototxt", case / "weights.caffemodel")


def built(text: str, seed: int | None = 0) -> Any:
    """The chain of a net from its definition alone."""
    need("chainer")
    return bridge.build_chain(assemble(None, prototxt.parse(text)), seed=seed)


def state(chain: Any) -> dict[str, np.ndarray]:
    """Every array, by the name that Chainer's archives give it."""
    from bridge.chain.functions import chainer

    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(chain)
    return {name: np.array(array) for name, array in serializer.target.items()}


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


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


# ---- copies, files, devices -------------------------------------------------------------------

IN_PLACE = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "x"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "x" }
layer { name: "scale" type: "Scale" bottom: "x" top: "x" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "x" top: "x" }
layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y"
  inner_product_param { num_output: 2 weight_filler { type: "msra" } } }
"""
X = np.random.default_rng(0).standard_normal((2, 3, 5, 5)).astype(np.float32)

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda chain: pickle.loads(pickle.dumps(chain)),
    "share": lambda chain: chain.copy(),
    "copy": lambda chain: chain.copy(mode="copy"),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["net_siamese_shared", "net_inplace", "net_alexnet_mini", "bn_default", "lstm"])
def test_a_copy_computes_the_same(name: str, how: str) -> None:
    net = golden(name)
    chain = bridge.build_chain(net)
    twin = COPIES[how](chain)
    assert equal(state(twin), state(chain))
    inputs = nets.random_inputs(net)
    assert all(np.array_equal(a, b) for a, b in zip(outputs(chain, inputs), outputs(twin, inputs), strict=True))
    assert twin.layer_names() == chain.layer_names()
    bridge.from_chain(twin, net)


def outputs(chain: Any, inputs: Any) -> list[np.ndarray]:
    from bridge.chain.functions import chainer

    with chainer.using_config("train", False):
        values = chain.run(inputs)
    return [values[name].array for name in chain.net_outputs]


@pytest.mark.parametrize("how", ["copy.deepcopy", "pickle", "copy"])
def test_a_deep_copy_is_apart(how: str) -> None:
    chain = built(IN_PLACE)
    before = state(chain)
    twin = COPIES[how](chain)
    twin(X)  # moves statistics
    for param in twin.params():
        param.array += 1
    assert equal(state(chain), before)


def test_a_copy_can_be_filled_anew_by_the_layers_fillers() -> None:
    chain = built(IN_PLACE)
    chain.child("scale").W.array[...] = 7
    twin = chain.copy(mode="init")
    assert (twin.child("scale").W.array == 1).all()
    assert not np.array_equal(twin.child("conv").W.array, chain.child("conv").W.array)
    assert 0 < np.abs(twin.child("conv").W.array).max() <= np.sqrt(3 / 27)


def test_an_archive_fills_a_chain_that_was_built_from_the_definition(tmp_path: Path) -> None:
    from bridge.chain.functions import chainer

    first, second = built(IN_PLACE, 0), built(IN_PLACE, 1)
    first(X)
    assert not equal(state(first), state(second))
    chainer.serializers.save_npz(tmp_path / "a.npz", first)
    chainer.serializers.load_npz(tmp_path / "a.npz", second)
    assert equal(state(first), state(second))
    with np.load(tmp_path / "a.npz") as archive:
        assert sorted(archive) == [
            "bn/mean", "bn/scale_factor", "bn/variance", "conv/W", "conv/b", "fc/W", "fc/b", "scale/W", "scale/b",
        ]  # fmt: skip


def test_a_chain_does_not_keep_the_arrays_that_it_was_made_from() -> None:
    """Chainer's parameters keep their first array as initializer, on the CPU, if they are made from one."""
    chain = bridge.build_chain(fashion())
    size = sum(param.array.nbytes for param in chain.params())
    for param in chain.params():
        param.array = param.array * 2
    assert len(pickle.dumps(chain)) < 1.3 * size + 100_000


def test_a_chain_within_a_chain_trains() -> None:
    from bridge.chain.functions import chainer

    class Tuned(chainer.Chain):
        def __init__(self, trunk: Any) -> None:
            super().__init__()
            with self.init_scope():
                self.trunk = trunk
                self.head = chainer.links.Linear(4 * 9, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.trunk.run({"data": x}, stop=-1)["x"])

    tuned = Tuned(built(IN_PLACE))
    optimizer = chainer.optimizers.Adam().setup(tuned)
    before = state(tuned)
    optimizer.update(lambda: chainer.functions.softmax_cross_entropy(tuned(X), np.int32([0, 1])))
    moved = {name for name, array in state(tuned).items() if array.tobytes() != before[name].tobytes()}
    assert moved == set(before) - {"trunk/fc/W", "trunk/fc/b", "trunk/conv/b"} or "trunk/conv/W" in moved
    assert bridge.freeze(tuned, "trunk") == ["trunk"]


@pytest.mark.parametrize("name", ["net_siamese_shared", "net_inplace"])
def test_another_device_gets_everything(name: str) -> None:
    chain = bridge.build_chain(golden(name))
    chain.to_device("@numpy")
    assert chain.xp is np


# ---- wiring -----------------------------------------------------------------------------------


def test_shared_parameters_are_registered_once() -> None:
    chain = bridge.build_chain(golden("net_siamese_shared"))
    paths = [path for path, _ in chain.namedparams()]
    assert len(paths) == len(set(map(id, chain.params())))
    assert {chain.layer_names()[i] for i in range(len(chain.layer_names())) if chain.roles(i)} > {
        path.split("/")[1] for path in paths
    }


SHARED = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 3 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" } param { name: "b" }
  inner_product_param { num_output: 3 weight_filler { type: "gaussian" } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } param { name: "b" }
  inner_product_param { num_output: 3 weight_filler { type: "gaussian" } } }
layer { name: "c" type: "InnerProduct" bottom: "b" top: "c" param { name: "w" } param { name: "c" }
  inner_product_param { num_output: 3 weight_filler { type: "gaussian" } } }
"""


def test_a_net_without_weights_shares_what_its_definition_shares() -> None:
    chain = built(SHARED)
    assert [path for path, _ in chain.namedparams()] == ["/a/W", "/a/b", "/c/b"]
    w, x = chain.child("a").W.array, np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(chain(x).array, x @ w.T @ w.T @ w.T, rtol=1e-5)


SHARED_STATISTICS = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 2 } } }
layer { name: "a" type: "BatchNorm" bottom: "x" top: "a" param { name: "m" } param { name: "v" } param { name: "s" } }
layer { name: "b" type: "BatchNorm" bottom: "a" top: "b" param { name: "m" } param { name: "v" } param { name: "s" } }
"""


@pytest.mark.parametrize("name", ["s", "t"])
def test_shared_statistics_are_moved_by_both_layers_and_frozen_for_both(name: str) -> None:
    """Once all of them, and once all but the scale factor."""
    head, _, tail = SHARED_STATISTICS.rpartition('"s"')
    chain = built(f'{head}"{name}"{tail}')
    x = np.random.default_rng(0).standard_normal((4, 2)).astype("f")
    y = chain(x)
    assert y.array.std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(chain.child("a").mean, x.mean(axis=0) * 0.999, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(chain.child("a").scale_factor, [1.999 if name == "s" else 1])
    bridge.freeze(chain, "b")
    before = state(chain)
    chain(x)
    assert equal(state(chain), before)
    bridge.thaw(chain, "b")
    chain(x)
    assert all(array.tobytes() != before[key].tobytes() for key, array in state(chain).items())


BRANCHES = """
layer { name: "data" type: "Input" top: "data" top: "label" input_param { shape { dim: 2 dim: 3 } shape { dim: 2 } } }
layer { name: "split" type: "Slice" bottom: "data" top: "first" top: "rest" slice_param { slice_point: 1 } }
layer { name: "double" type: "Power" bottom: "rest" top: "rest" power_param { scale: 2 } }
layer { name: "unused" type: "Silence" bottom: "label" }
"""


def test_several_outputs_come_by_name() -> None:
    chain = built(BRANCHES)
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    found = chain(x, np.zeros(2, np.float32))
    assert list(found) == ["first", "rest"]
    np.testing.assert_array_equal(found["rest"].array, 2 * x[:, 1:])
    by_name = chain(label=np.zeros(2, np.float32), data=x)
    by_dict = chain({"label": np.zeros(2, np.float32), "data": x})
    for other in (by_name, by_dict):
        assert all(np.array_equal(found[name].array, other[name].array) for name in found)


def test_an_input_that_is_missing_is_named_and_takes_no_others_place() -> None:
    chain = built(BRANCHES)
    with pytest.raises(UsageError, match=r"layer 'split' .*blob 'data' was neither given nor computed"):
        chain(label=np.zeros(2, np.float32))
    values = chain.run({"data": np.ones((2, 3), np.float32)}, stop=3)  # the label goes unread
    assert "label" not in values


def test_too_many_inputs_are_refused() -> None:
    with pytest.raises(UsageError, match="got 3 inputs, expected data, label"):
        built(BRANCHES)(X, X, X)


def test_a_part_of_the_net_runs_from_what_an_earlier_part_handed_on() -> None:
    chain = built(IN_PLACE)
    from bridge.chain.functions import chainer

    with chainer.using_config("train", False):
        whole = chain.run({"data": X})
        first = chain.run({"data": X}, stop=3)
        second = chain.run({"x": first["x"]}, start=3)
        assert np.array_equal(second["y"].array, whole["y"].array)
        assert np.array_equal(chain.run({"x": first["x"]}, start=3, stop=-1)["x"].array, whole["x"].array)


def test_a_layer_in_place_leaves_what_others_read_before_as_it_was() -> None:
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }
    layer { name: "p" type: "Power" bottom: "x" top: "y" power_param { scale: 1 } }
    layer { name: "keep" type: "Split" bottom: "y" top: "k" }
    layer { name: "neg" type: "Power" bottom: "y" top: "y" power_param { scale: -1 } }
    layer { name: "sum" type: "Eltwise" bottom: "k" bottom: "y" top: "z" }
    """
    assert not built(text)(np.float32([[1, 2]])).array.any()


def test_what_chainer_cannot_run_is_named_all_of_it() -> None:
    need("chainer")
    text = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }
    layer { name: "a" type: "Strange" bottom: "x" top: "y" }
    layer { name: "b" type: "Stranger" bottom: "y" top: "z" }
    """
    with pytest.raises(UnsupportedLayerError) as caught:
        bridge.build_chain(assemble(None, prototxt.parse(text)))
    assert "layer 'a' (Strange): unknown layer type 'Strange'" in str(caught.value)
    assert "layer 'b' (Stranger): unknown layer type 'Stranger'" in str(caught.value)


def test_blobs_of_unknown_size_are_refused() -> None:
    need("chainer")
    text = 'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }'
    with pytest.raises(ModelError, match=r"layer 'ip' .*has no blobs, and the shape of its input is not known"):
        bridge.build_chain(assemble(None, prototxt.parse(text)))


def test_a_net_without_a_loss_says_so() -> None:
    with pytest.raises(ModelError, match="the net has no loss"):
        built(IN_PLACE).loss({"data": X})


def test_values_that_single_precision_cannot_hold_are_infinite() -> None:
    need("chainer")
    from bridge.schema import Blob

    net = nets.make(SHARED)
    layers = list(net.layers)
    for index in (1, 2, 3):
        blobs = {role: Blob.of(np.full(blob.shape, 1e300)) for role, blob in layers[index].blobs.entries()}
        layers[index] = layers[index].with_blobs(list(blobs.values()))
    chain = bridge.build_chain(net.replace(layers=tuple(layers)))
    assert np.isposinf(chain.child("a").W.array).all()


# ---- Caffe's running statistics ---------------------------------------------------------------


def bn_net(params: str, shape: tuple[int, ...]) -> str:
    dims = " ".join(f"dim: {n}" for n in shape)
    return f"""
    layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {dims} }} }} }}
    layer {{ name: "bn" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param {{ {params} }} }}
    """


def reference(
    batches: list[np.ndarray], fraction: float, eps: float
) -> tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray, float]]:
    """BatchNorm in training, loop by loop as batch_norm_layer.cpp has it.

    (The Caffe that ``tox run -e caffe`` installs uses stored statistics in training too, and so is no judge.)
    """
    channels = batches[0].shape[1]
    mean, variance, factor, tops = np.zeros(channels), np.zeros(channels), 0.0, []
    for x in batches:
        x = x.astype(np.float64)
        m = x.size // channels
        top = np.empty_like(x)
        factor = factor * fraction + 1
        for c in range(channels):
            values = x[:, c]
            own = values.sum() / m
            spread = ((values - own) ** 2).sum() / m
            mean[c] = mean[c] * fraction + own
            variance[c] = variance[c] * fraction + (m / (m - 1) if m > 1 else 1) * spread
            top[:, c] = (values - own) / np.sqrt(spread + eps)
        tops.append(top)
    return tops, (mean, variance, factor)


@pytest.mark.filterwarnings("ignore:A batch with no more than one sample")
@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple),
    fraction=st.sampled_from([0.999, 0.9, 0.5, 0.0]),
    eps=st.sampled_from([1e-5, 1e-2]),
    flag=st.sampled_from(["", "use_global_stats: false"]),
    steps=st.integers(1, 3),
)
def test_training_moves_the_statistics_as_in_caffe(
    shape: tuple[int, ...], fraction: float, eps: float, flag: str, steps: int
) -> None:
    chain = built(bn_net(f"moving_average_fraction: {fraction} eps: {eps} {flag}", shape))
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal(shape) * 2 + 1).astype("f") for _ in range(steps)]
    tops, (mean, variance, factor) = reference(batches, fraction, eps)
    for x, expected in zip(batches, tops, strict=True):
        np.testing.assert_allclose(chain(x).array, expected, rtol=1e-4, atol=1e-4)
    link = chain.child("bn")
    np.testing.assert_allclose(link.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(link.variance, variance, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(link.scale_factor, [factor], rtol=1e-6)
    assert {array.dtype for array in (link.mean, link.variance, link.scale_factor)} == {np.dtype("f")}
    check_test_mode(chain, batches[0], flag, eps)


def check_test_mode(chain: Any, x: np.ndarray, flag: str, eps: float) -> None:
    """In test mode, and frozen in training, nothing moves, and the sums divided by the factor count."""
    from bridge.chain.functions import chainer

    before, link = state(chain), chain.child("bn")
    with chainer.using_config("train", False):
        tested = chain(x).array
    bridge.freeze(chain, "bn")
    frozen = chain(x).array
    assert equal(state(chain), before)
    assert np.array_equal(tested, frozen)
    if not flag:
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, variance = ((link.mean / link.scale_factor), (link.variance / link.scale_factor))
        expected = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + eps)
        np.testing.assert_allclose(tested, expected, rtol=1e-3, atol=1e-4)


def test_global_statistics_in_training_stay_as_they_are() -> None:
    chain = built(bn_net("use_global_stats: true", (4, 3)))
    chain.child("bn").scale_factor[...] = 2
    chain.child("bn").variance[...] = 8
    before = state(chain)
    x = np.float32(np.arange(12).reshape(4, 3))
    np.testing.assert_allclose(chain(x).array, x / np.sqrt(4 + 1e-5), rtol=1e-6)
    assert equal(state(chain), before)


# ---- arrays that are not NumPy's --------------------------------------------------------------


class Foreign(np.ndarray):
    """Stands for CuPy's array: outside Chainer's own functions it does not mix with NumPy's."""

    inside = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        _refuse(inputs, ufunc)
        plain = [_plain(value) for value in inputs]
        if out is not None:
            options["out"] = tuple(_plain(value) for value in out)
        made = getattr(ufunc, method)(*plain, **options)
        return out[0] if out is not None else _foreign(made)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        _refuse(_flat(args), function)
        return _foreign(function(*_map(args, _plain), **_map(kwargs, _plain)))


def _refuse(values: Any, function: Any) -> None:
    mixed = [value for value in values if type(value) is np.ndarray and value.ndim]
    if mixed and not Foreign.inside:
        raise TypeError(f"{function}: NumPy's array among another's")


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        yield from _flat(value) if isinstance(value, (list, tuple)) else (value,)


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _map(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, function) for item in value)
    return function(value)


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Foreign) else value


def _foreign(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_foreign, value))
    return value.view(Foreign) if isinstance(value, np.ndarray) else value


class ForeignModule:
    """Stands for ``cupy``: NumPy's functions, for its own arrays alone."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, (type, float)) or not callable(found):
            return found
        if isinstance(found, np.ufunc):
            return _Ufunc(found)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name not in ("asarray", "array"):
                _refuse(_flat(args), name)
            return _foreign(found(*_map(args, _plain), **_map(kwargs, _plain)))

        return call


class _Ufunc:
    def __init__(self, ufunc: np.ufunc) -> None:
        self.ufunc = ufunc
        self.at = ufunc.at

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _refuse(args, self.ufunc)
        return _foreign(self.ufunc(*_map(args, _plain), **_map(kwargs, _plain)))


@pytest.fixture
def foreign(monkeypatch: Any) -> ForeignModule:
    """Every array outside Chainer's functions is foreign, and every ``xp`` the foreign module."""
    need("chainer")
    from bridge.chain.functions import chainer

    module = ForeignModule()
    node, device = chainer.function_node.FunctionNode, chainer.backend.CpuDevice
    apply, own_module = node.apply, chainer.backend.get_array_module

    def applied(self: Any, inputs: Any) -> Any:
        Foreign.inside += 1
        try:
            inputs = [chainer.as_variable(value) for value in inputs]
            made = apply(self, [chainer.Variable(_plain(v.array), requires_grad=v.requires_grad) for v in inputs])
        finally:
            Foreign.inside -= 1
        for variable in made:
            variable._data[0] = _foreign(variable.array)
        return made

    monkeypatch.setattr(node, "apply", applied)
    monkeypatch.setattr(device, "xp", property(lambda self: np if Foreign.inside else module))
    pool = chainer.functions.max_pooling_2d  # gives places as a bare array
    monkeypatch.setattr(chainer.functions, "max_pooling_2d", lambda *args, **options: _foreign(pool(*args, **options)))
    monkeypatch.setattr(
        chainer.backend, "get_array_module", lambda *args: own_module(*args) if Foreign.inside else module
    )
    return module


@pytest.mark.filterwarnings("ignore:A batch with no more than one sample")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", sorted(CASES))
def test_lowerings_never_mix_numpy_with_the_arrays_they_are_given(name: str, train: bool, foreign: Any) -> None:
    from bridge.chain.functions import chainer

    @settings(max_examples=10)
    @given(CASES[name])
    def check(case: Any) -> None:
        net = case.net()
        try:
            chain = bridge.build_chain(net)
        except UnsupportedLayerError:
            return
        inputs = case.inputs()
        Foreign.inside += 1
        try:
            expected = run(copy.deepcopy(chain), inputs, train)
        finally:
            Foreign.inside -= 1
        for link in chain.links():
            for key in link._params:
                getattr(link, key)._data[0] = _foreign(getattr(link, key).array)
            for key in link._persistent:
                setattr(link, key, _foreign(getattr(link, key)))
        found = run(chain, {key: _foreign(value) for key, value in inputs.items()}, train)
        for a, b in zip(found, expected, strict=True):
            if net.layers[-1].type != "Dropout" or not train:
                np.testing.assert_allclose(_plain(a), _plain(b), rtol=1e-4, atol=1e-5)

    def run(chain: Any, inputs: Any, train: bool) -> list[np.ndarray]:
        with chainer.using_config("train", train), np.errstate(all="ignore"):
            values = chain.run(inputs)
        return [values[key].array for key in chain.net_outputs if key in values]

    check()


# ---- on a GPU ---------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_gpu_computes_what_the_cpu_does(name: str) -> None:
    need("chainer")
    from bridge.chain.functions import chainer

    @settings(max_examples=5)
    @given(CASES[name])
    def check(case: Any) -> None:
        try:
            chain = bridge.build_chain(case.net())
        except UnsupportedLayerError:
            return
        on_gpu = copy.deepcopy(chain)
        on_gpu.to_device("@cupy:0")
        to_cpu = chainer.backends.cuda.to_cpu
        inputs = case.inputs()
        expected = outputs(chain, inputs)
        found = outputs(on_gpu, {key: on_gpu.xp.asarray(value) for key, value in inputs.items()})
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(to_cpu(a), b, rtol=1e-3, atol=1e-4)

    check()


@pytest.mark.gpu
def test_training_on_a_gpu_gives_the_same_net() -> None:
    from bridge.chain.functions import chainer

    trained = []
    for device in ("@numpy", "@cupy:0"):
        chain = built(IN_PLACE)
        chain.to_device(device)
        optimizer = chainer.optimizers.MomentumSGD().setup(chain)
        x, t = chain.xp.asarray(X), chain.xp.asarray(np.int32([0, 1]))
        for _ in range(3):
            optimizer.update(lambda: chainer.functions.softmax_cross_entropy(chain(x), t))  # noqa: B023
        trained.append(bridge.from_chain(chain, assemble(None, prototxt.parse(IN_PLACE))))
    for a, b in zip(*trained, strict=True):
        for role, values in a.blobs.items():
            np.testing.assert_allclose(b.blobs[role], values, rtol=1e-3, atol=1e-4)


# ---- the CPU's own convolution, pooling and normalisation -------------------------------------


def test_an_image_is_the_same_in_any_company() -> None:
    """Bit by bit: features of a frozen trunk can be kept, and come out the same in any batch."""
    chain = bridge.build_chain(fashion())
    with np.load(FASHION / "fashion_mini.npz") as data:
        x = data["x_train"][:40, None].astype("f") / 256
    from bridge.chain.functions import chainer

    with chainer.using_config("train", False), chainer.no_backprop_mode():
        together = chain.run({"data": x}, stop=-5)
        for chosen in ([0], [7, 3], list(range(39, -1, -3))):
            apart = chain.run({"data": x[chosen]}, stop=-5)
            for name in ("conv1", "norm1", "pool1", "conv2", "pool3"):
                assert apart[name].array.tobytes() == together[name].array[chosen].tobytes(), name


def test_building_imports_nothing_that_it_does_not_need() -> None:
    need("chainer")
    code = (
        "import sys, bridge; import bridge.chain; assert 'chainer' not in sys.modules; "
        "bridge.build_chain; assert 'chainer' in sys.modules; "
        "assert not {'onnx', 'onnxruntime', 'matplotlib'} & set(sys.modules)"  # Chainer imports h5py and PIL
    )
    subprocess.run([sys.executable, "-c", code], check=True)
