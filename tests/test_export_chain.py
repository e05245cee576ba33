"""Chains that no net describes, as ONNX: held to the chain itself in ONNX Runtime."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import bridge
from bridge.errors import BridgeError, DifferenceError, ModelError, UnsupportedLayerError, UsageError
from tests.conftest import FASHION, need


def modules() -> tuple[Any, Any, Any]:
    need("chainer", "onnxruntime")
    from bridge.chain.functions import chainer

    return chainer, chainer.functions, chainer.links


def x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exported(chain: Any, args: Any, path: Path, **options: Any) -> Any:
    """The model that was written."""
    import onnx

    from bridge.exporting import export_chain

    export_chain(chain, args, path, **options)
    return onnx.load(path)


def link(make: Callable[[Any, Any], Any]) -> Any:
    """A chain of one link, or of links and functions."""
    chainer, F, L = modules()
    made = make(F, L)
    return chainer.Sequential(*(made if isinstance(made, tuple) else (made,)))


def random_slopes(shape: Any) -> Callable[[Any], None]:
    def fill(array: Any) -> None:
        array[...] = np.random.default_rng(1).random(array.shape) + 0.1

    return fill


# What onnx_chainer says wrongly, or in a way that ONNX Runtime refuses, and our own functions.
REPAIRED: dict[str, tuple[Callable[[Any, Any], Any], tuple[int, ...]]] = {
    "dilated deconvolution": (
        lambda F, L: L.Deconvolution2D(4, 6, 3, stride=2, pad=1, dilate=2, groups=2), (2, 4, 5, 5),
    ),
    "deconvolution to a given size": (
        lambda F, L: L.Deconvolution2D(4, 6, 3, stride=2, pad=1, outsize=(10, 9)), (2, 4, 5, 5),
    ),
    "deconvolution to a smaller size": (
        lambda F, L: L.Deconvolution2D(4, 6, 4, stride=3, outsize=(15, 14)), (2, 4, 5, 5),
    ),
    "dilated deconvolution in 3 dimensions": (
        lambda F, L: L.DeconvolutionND(3, 2, 3, 2, stride=2, dilate=2), (1, 2, 3, 4, 3),
    ),
    "dilated convolution in 3 dimensions": (
        lambda F, L: L.ConvolutionND(3, 2, 4, 2, dilate=2, groups=2), (1, 2, 5, 5, 5),
    ),
    "convolution in 1 dimension": (lambda F, L: L.ConvolutionND(1, 2, 4, 3, stride=2, pad=1), (2, 2, 9)),
    "convolution that covers all": (lambda F, L: L.ConvolutionND(2, 2, 4, 3, stride=2, cover_all=True), (1, 2, 8, 8)),
    "slopes per channel": (lambda F, L: L.PReLU((3,), init=random_slopes((3,))), (2, 3, 4, 5)),
    "slopes per row": (lambda F, L: L.PReLU((3, 4), init=random_slopes((3, 4))), (2, 3, 4, 5)),
    "one slope": (lambda F, L: L.PReLU((), init=random_slopes(())), (2, 3, 4, 5)),
    "resized": (lambda F, L: lambda v: F.resize_images(v, (7, 9)), (2, 3, 4, 5)),
    "resized to one": (lambda F, L: lambda v: F.resize_images(v, (1, 9)), (2, 3, 4, 5)),
    "resized smaller, corners not aligned": (
        lambda F, L: lambda v: F.resize_images(v, (3, 4), align_corners=False), (2, 3, 8, 7),
    ),
    "resized, nearest": (lambda F, L: lambda v: F.resize_images(v, (7, 9), mode="nearest"), (2, 3, 4, 5)),
    "max pooling that covers all": (lambda F, L: lambda v: F.max_pooling_2d(v, 3, 2), (1, 2, 6, 6)),
    "max pooling with windows in the padding alone": (
        lambda F, L: lambda v: F.max_pooling_2d(v, 2, 2, 1), (1, 2, 5, 5),
    ),
    "max pooling of single pixels": (lambda F, L: lambda v: F.max_pooling_2d(v, 1, 2), (1, 2, 4, 4)),
    "average pooling": (lambda F, L: lambda v: F.average_pooling_2d(v, 3, 2, 1), (1, 2, 6, 6)),
    "average pooling in 3 dimensions": (lambda F, L: lambda v: F.average_pooling_nd(v, 2, 2, 1), (1, 2, 4, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("case", REPAIRED)
def test_what_is_repaired_computes_what_chainer_does(case: str, opset: int, tmp_path: Path) -> None:
    make, shape = REPAIRED[case]
    exported(link(make), x(*shape), tmp_path / "a.onnx", opset=opset)  # checks in ONNX Runtime


def networks() -> dict[str, Callable[[], tuple[Any, Any]]]:
    chainer, F, L = modules()

    class Net(chainer.Chain):
        """What users write: branches, normalisation, two inputs, two outputs."""

        def __init__(self) -> None:
            super().__init__()
            with self.init_scope():
                self.conv = L.Convolution2D(None, 6, 3, pad=1)
                self.norm = L.BatchNormalization(6)
                self.other = L.Convolution2D(None, 6, 1, nobias=True)
                self.fc = L.Linear(None, 5)

        def forward(self, a: Any, b: Any) -> dict[str, Any]:
            h = F.relu(self.norm(self.conv(a))) + self.other(b)
            h = F.concat([h, F.tanh(h)], axis=1)
            h = F.max_pooling_2d(F.local_response_normalization(h, 5, 2, 1e-4, 0.75), 3, 2)
            y = self.fc(F.dropout(h))
            return {"scores": F.softmax(y), "logits": y}

    class Tuned(chainer.Chain):
        """A trunk from Caffe under a head of one's own."""

        def __init__(self) -> None:
            super().__init__()
            net = bridge.load(FASHION / "deploy.prototxt", FASHION / "fashion_alexnet.caffemodel")
            with self.init_scope():
                self.trunk = bridge.build_chain(net)
                self.head = L.Linear(64, 3)

        def forward(self, data: Any) -> Any:
            return self.head(self.trunk.run({"data": data}, stop=-2)["fc6"])

    return {
        "written": lambda: (Net(), (x(2, 3, 8, 8), x(2, 3, 8, 8, seed=1))),
        "tuned": lambda: (Tuned(), x(2, 1, 28, 28)),
    }


@pytest.mark.parametrize("opset", [9, 11, 13, 15, 18, 21])
@pytest.mark.parametrize("name", ["written", "tuned"])
def test_a_network_in_old_and_new_operator_sets(name: str, opset: int, tmp_path: Path) -> None:
    from onnx import helper

    chain, args = networks()[name]()
    model = exported(chain, args, tmp_path / "a.onnx", opset=opset)
    assert [(own.domain, own.version) for own in model.opset_import] == [("", opset)]
    weights = {tensor.name for tensor in model.graph.initializer}
    assert weights
    assert not weights & {value.name for value in model.graph.input}
    assert model.ir_version == max(4, helper.find_min_ir_version_for(list(model.opset_import)))


def test_inputs_and_outputs_have_the_names_that_are_given_or_the_users_own(tmp_path: Path) -> None:
    chain, args = networks()["written"]()
    model = exported(chain, args, tmp_path / "a.onnx")
    assert [value.name for value in model.graph.input] == ["Input_0", "Input_1"]
    assert [value.name for value in model.graph.output] == ["scores", "logits"]
    model = exported(chain, {"b": args[1], "a": args[0]}, tmp_path / "a.onnx", output_names=["p", "q"])
    assert [value.name for value in model.graph.input] == ["b", "a"]
    assert [value.name for value in model.graph.output] == ["p", "q"]
    model = exported(chain, list(args), tmp_path / "a.onnx", input_names=["left", "right"])
    assert [value.name for value in model.graph.input] == ["left", "right"]
    with pytest.raises(ModelError, match="1 names for 2 inputs: left"):
        exported(chain, list(args), tmp_path / "a.onnx", input_names=["left"])


def test_the_chain_is_left_as_it_was(tmp_path: Path) -> None:
    chainer, _, _ = modules()
    chain, args = networks()["written"]()
    with chainer.using_config("train", False):
        chain(*args)
    twin, given = copy.deepcopy(chain), [array.copy() for array in args]
    exported(chain, args, tmp_path / "a.onnx")
    for (path, param), (_, other) in zip(chain.namedparams(), twin.namedparams(), strict=True):
        assert np.array_equal(param.array, other.array), path
    assert np.array_equal(chain.norm.avg_mean, twin.norm.avg_mean)
    assert all(np.array_equal(a, b) for a, b in zip(args, given, strict=True))


def test_a_function_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayerError, match="onnx_chainer: Flip is not supported"):
        exported(link(lambda F, L: lambda v: F.flip(v, 0)), x(2, 3), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayerError, match="is one of them an input"):
        exported(link(lambda F, L: F.dropout), x(2, 3), tmp_path / "a.onnx")


@pytest.mark.parametrize("opset", [6, 99])
def test_an_operator_set_out_of_range_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"opset {opset} is outside 7 to"):
        exported(link(lambda F, L: F.relu), x(2, 3), tmp_path / "a.onnx", opset=opset)


def test_a_model_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: Any) -> None:
    chain = link(lambda F, L: L.PReLU((3,), init=random_slopes((3,))))
    from bridge.exporting import chain as export

    monkeypatch.delitem(export._CONVERTERS, "PReLUFunction")  # as onnx_chainer has it
    with pytest.raises((DifferenceError, BridgeError)):
        exported(chain, x(2, 3, 3, 3), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@settings(max_examples=40)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pad=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilate=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    extra=st.tuples(st.integers(-2, 2), st.integers(-2, 2)),
    group=st.integers(1, 2),
)
def test_any_deconvolution(kernel: Any, stride: Any, pad: Any, dilate: Any, extra: Any, group: int) -> None:
    _, _, L = modules()
    sizes = zip((4, 5), kernel, stride, pad, dilate, extra, strict=True)
    out = tuple(s * (n - 1) + (k - 1) * d + 1 - 2 * p + e for n, k, s, p, d, e in sizes)
    # what Chainer takes, and what ONNX Runtime does
    assume(min(out) > 0)
    assume(all(-s < e < max(s, d) for s, d, e in zip(stride, dilate, extra, strict=True)))
    fits = zip(out, (4, 5), kernel, stride, pad, dilate, strict=True)
    for o, n, k, s, p, d in fits:
        steps = o + 2 * p - d * (k - 1) - 1
        assume(steps // s + 1 <= n <= (steps + s - 1) // s + 1)
    channels = 2 * group
    made = L.Deconvolution2D(channels, channels, kernel, stride, pad, outsize=out, dilate=dilate, groups=group)
    with tempfile.TemporaryDirectory() as folder:
        exported(made, x(1, channels, 4, 5), Path(folder) / "a.onnx")


@settings(max_examples=40)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    pad=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    cover_all=st.booleans(),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
)
def test_any_max_pooling(kernel: Any, stride: Any, pad: Any, cover_all: bool, size: Any) -> None:
    assume(all(p < k for k, p in zip(kernel, pad, strict=True)))
    # a window that lies in the padding alone is -inf in Chainer, and no window at all for ONNX Runtime
    spare = ((n + p - 1) // s * s - p + k > n + p for n, k, s, p in zip(size, kernel, stride, pad, strict=True))
    assume(cover_all is False or all(s <= k for k, s in zip(kernel, stride, strict=True)) or not any(spare))
    counts = (
        (n + 2 * p - k + (s - 1) * cover_all) // s + 1 for n, k, s, p in zip(size, kernel, stride, pad, strict=True)
    )
    assume(all((c - 1) * s - p < n for c, n, s, p in zip(counts, size, stride, pad, strict=True)))
    make = lambda F, L: lambda v: F.max_pooling_2d(v, kernel, stride, pad, cover_all)  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        exported(link(make), x(1, 2, *size), Path(folder) / "a.onnx")
