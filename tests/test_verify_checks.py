"""Consistency checks: each finds what it is for, and names the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.schema import Blob, RawLayer, RawNet
from bridge.schema.groups import spread_groups
from bridge.verification.checks import CHECKS, run_checks
from bridge.verification.values import block_groups, look
from bridge.verification.weights import Loaded
from tests.conftest import GOLDEN
from tests.nets import make

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 dim: 5 dim: 5 } } }\n'
CONV = (
    'layer { name: "c" type: "Convolution" bottom: "x" top: "y" convolution_param { num_output: 4 kernel_size: 3 %s } }'
)
FC = 'layer { name: "%s" type: "InnerProduct" bottom: "x" top: "%s" inner_product_param { num_output: 2 } %s }\n'


def loaded(text: str, **blobs: Any) -> Loaded:
    """A net and its stored blobs, by layer name."""
    definition = prototxt.parse(text)
    types = {layer.text("name"): layer.text("type") for layer in definition.messages("layer")}
    layers = tuple(
        RawLayer(name, types.get(name, "InnerProduct"), prototxt.parse(f'name: "{name}"'), tuple(map(Blob.of, arrays)))
        for name, arrays in blobs.items()
    )
    raw = RawNet("net", layers, source="test", complete=False)
    return Loaded(raw, assemble(raw, definition), definition)


def f(*shape: int, fill: float = 1.0) -> np.ndarray:
    return np.full(shape, fill, np.float32)


def ill(**values: Any) -> np.ndarray:
    """A kernel with one odd value."""
    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    weight[1, 2, 0, 1] = values["value"]
    return weight


def bn(mean: float = 1, variance: float = 1, factor: float = 1) -> list[np.ndarray]:
    return [f(4, fill=mean), f(4, fill=variance), f(1, fill=factor)]


BN = INPUT + 'layer { name: "b" type: "BatchNorm" bottom: "x" top: "y" }'
SHARED = INPUT + FC % ("a", "y", 'param { name: "w" }') + FC % ("b", "z", 'param { name: "w" }')

CASES: dict[str, tuple[str, Callable[[], Loaded], str, str]] = {
    "parameters": ("error", lambda: loaded(INPUT + CONV % "stride: 0"), "c", "'stride'"),
    "parameters of an unknown type": ("note", lambda: loaded('layer { name: "f" type: "Fancy" }'), "f", "unknown"),
    "group": ("error", lambda: loaded(INPUT.replace("dim: 4", "dim: 3") + CONV % "group: 2"), "c", "3 input channels"),
    "kernel": ("error", lambda: loaded(INPUT + CONV % "dilation: 3"), "c", "does not fit"),
    "shapes": (
        "error",
        lambda: loaded(INPUT + CONV % "", c=[f(4, 3, 3, 3), f(4)]),
        "c",
        "expected 144 = 4 x 4 x 3 x 3",
    ),
    "shapes of a kernel that is dense": (
        "error",
        lambda: loaded(INPUT + CONV % "group: 2", c=[f(4, 4, 3, 3), f(4)]),
        "c",
        "expected 72 = 4 x 2 x 3 x 3",
    ),
    "finite": (
        "error",
        lambda: loaded(INPUT + CONV % "", c=[ill(value=np.nan), f(4)]),
        "c",
        "the first at [1, 2, 0, 1]",
    ),
    "denormals": ("note", lambda: loaded(INPUT + CONV % "", c=[ill(value=1e-40), f(4)]), "c", "1 denormal"),
    "dead-filters": (
        "note",
        lambda: loaded(INPUT + CONV % "", c=[ill(value=1) * (np.arange(4) != 2).reshape(4, 1, 1, 1), f(4)]),
        "c",
        "1 of 4 filters",
    ),
    "batch-norm": ("note", lambda: loaded(BN, b=bn(factor=0)), "b", "scale factor 0"),
    "batch-norm with a negative variance": ("error", lambda: loaded(BN, b=bn(variance=-1)), "b", "its root is NaN"),
    "batch-norm with a barely negative variance": (
        "note",
        lambda: loaded(BN, b=bn(variance=-1e-7)),
        "b",
        "less than eps",
    ),
    "shared": ("error", lambda: loaded(SHARED, a=[f(2, 100), f(2)], b=[f(2, 100, fill=2), f(2)]), "", "parameter 'w'"),
    "spread-groups": (
        "note",
        lambda: loaded(INPUT + CONV % "", c=[spread_groups(ill(value=1)[:, :2], 2), f(4)]),
        "c",
        "group 2",
    ),
    "no-weights": ("error", lambda: loaded(INPUT + FC % ("fc8", "y", ""), fc8_new=[f(2, 100)]), "fc8", "has none"),
    "unused-weights": (
        "note",
        lambda: loaded(INPUT + FC % ("a", "y", ""), a=[f(2, 100), f(2)], aa=[f(1)]),
        "aa",
        "no layer uses its 1 stored blob",
    ),
    "same-net": ("error", lambda: loaded(INPUT + FC % ("fc8", "y", ""), fc88=[f(2, 100)]), "", "different nets"),
    "duplicate-names": (
        "note",
        lambda: loaded(INPUT + FC % ("a", "y", "") + FC % ("a", "z", ""), a=[f(2, 100), f(2)]),
        "a",
        "2 layers",
    ),
    "fields": (
        "error",
        lambda: loaded(INPUT + FC % ("a", "y", "inner_product_parm { axis: 2 }"), a=[f(2, 100), f(2)]),
        "a",
        "'inner_product_parm' is in no known caffe.proto",
    ),
    "wiring": ("error", lambda: loaded(INPUT + FC.replace('"x"', '"xx"') % ("a", "y", "")), "a", "reads blob 'xx'"),
}


@pytest.mark.parametrize("case", CASES)
def test_finds_what_it_is_for(case: str) -> None:
    severity, make, layer, message = CASES[case]
    name = case.split()[0]
    findings = run_checks(make(), only=[name]).findings
    assert len(findings) == 1
    (found,) = findings
    assert (found.check, found.severity, found.layer) == (name, severity, layer)
    assert message in found.message


def test_every_check_has_a_case() -> None:
    assert set(CHECKS) == {case.split()[0] for case in CASES}


@pytest.mark.parametrize("check", CHECKS)
def test_is_silent_on_a_sound_net(check: str) -> None:
    from tests.test_verify import NET

    net = make(NET)
    layers = (
        RawLayer(layer.name, layer.type, layer.definition, tuple(blob for _, blob in layer.blobs.entries()))
        for layer in net
    )
    sound = Loaded(RawNet("net", tuple(layers)), net, net.to_message())
    assert run_checks(sound, only=[check]).findings == ()


def test_a_note_fails_no_verification_and_a_check_can_be_silenced() -> None:
    from bridge.verification.report import Report
    from bridge.verification.results import BlobResult, WeightsResult

    same = WeightsResult("a", "b", (BlobResult("c", "Convolution", "weight"),))
    net = loaded(INPUT + CONV % "", c=[ill(value=1e-40), f(4)])
    assert Report(("net",), checked=(run_checks(net),), weights=(same,)).passed
    broken = loaded(INPUT + CONV % "", c=[ill(value=np.inf), f(4)])
    assert not Report(("net",), checked=(run_checks(broken),), weights=(same,)).passed
    assert Report(("net",), checked=(run_checks(broken, skip=["finite"]),), weights=(same,)).passed


@pytest.mark.parametrize("case", GOLDEN, ids=lambda path: path.name)
def test_finds_no_error_in_what_caffe_runs(case: Any) -> None:
    from bridge.verification.weights import Files

    files = Files.of([case / "deploy.prototxt", next(case.glob("*.caffemodel"))], {})
    assert run_checks(files.read()).count("error") == 0


@pytest.mark.parametrize(
    ("values", "message"), [((1, 1, 1), ""), ((1, 1, 2), "copy 0"), ((1, 2, 1), "copy 1"), ((2, 1, 1), "copy 0")]
)
def test_the_copy_that_differs_from_the_last_is_named(values: tuple[float, ...], message: str) -> None:
    text = INPUT + "".join(FC % (name, name, 'param { name: "w" }') for name in "abc")
    net = loaded(text, **{n: [f(2, 100, fill=value), f(2)] for n, value in zip("abc", values, strict=True)})
    found = [finding.message for finding in run_checks(net, only=["shared"]).findings]
    assert [text.partition(" of")[0] for text in found] == ([message] if message else [])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_looks_at_every_value_of_every_type(dtype: Any) -> None:
    values = np.ones((3, 700_000), dtype)
    values[1] = 0
    values[2, 5], values[2, 600_000] = np.nan, -np.inf
    values[0, 7] = np.finfo(dtype).smallest_subnormal
    found = look(values)
    assert (found.nonfinite, found.denormal, found.dead) == (2, 1, 1)
    assert found.first_nonfinite == 1_400_005


def test_signalling_nans_are_nothing_to_stumble_over() -> None:
    odd = np.array([0x7F800001], np.uint32).view(np.float32)
    text = INPUT + CONV.replace("kernel_size: 3", "kernel_size: 1 bias_term: false") % ""
    net = loaded(text, c=[np.broadcast_to(odd, (4, 4, 1, 1))])
    assert [finding.check for finding in run_checks(net).findings] == ["finite"]
    statistics = loaded(BN, b=[np.broadcast_to(odd, 4), np.broadcast_to(odd, 4), odd])
    assert {finding.check for finding in run_checks(statistics).findings} == {"finite"}


@pytest.mark.parametrize("group", [1, 2, 3, 6])
def test_finds_the_groups_of_a_spread_kernel(group: int) -> None:
    weight = np.random.default_rng(group).standard_normal((12, 6 // group, 3, 3))
    assert block_groups(spread_groups(weight, group)) == group
    assert block_groups(np.zeros((4, 4, 3, 3))) == 1
