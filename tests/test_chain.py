"""The built chain: its names, its copies, its files, its devices; and Caffe's running statistics."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import ModelError, UnsupportedLayerError, UsageError
from bridge.schema import Net
from tests import nets
from tests.conftest import FASHION, GOLDEN, need


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
