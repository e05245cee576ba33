"""Which layer goes with which link: by names, or by order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bridge
from bridge.errors import ModelError, UsageError
from bridge.schema import Net
from tests import nets
from tests.conftest import need
from tests.test_transplant import IP, bits, holder, links, one


@pytest.fixture(autouse=True)
def _needs_chainer() -> None:
    need("chainer")


# ---- names ------------------------------------------------------------------------------------


def two(first: str = "conv1", second: str = "conv2") -> Net:
    """Two convolutions of different shapes."""
    text = f"""
    layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 1 dim: 2 dim: 5 dim: 5 }} }} }}
    layer {{ name: "{first}" type: "Convolution" bottom: "x" top: "y"
      convolution_param {{ num_output: 3 kernel_size: 3 }} }}
    layer {{ name: "{second}" type: "Convolution" bottom: "y" top: "z"
      convolution_param {{ num_output: 4 kernel_size: 1 }} }}
    """
    return nets.make(text)


def convs() -> tuple[Any, Any]:
    L = links()
    return L.Convolution2D(2, 3, 3), L.Convolution2D(3, 4, 1)


def nested() -> Any:
    first, second = convs()
    return holder(features=holder(conv1=first, second=second), conv2=links().Linear(3, 3))


def paths(report: Any) -> dict[str, str]:
    return {row.layer: row.path.rpartition("/")[0] for row in report.filled}


@pytest.mark.parametrize(
    ("net", "rename", "expected"),
    [
        (two(), None, {"conv1": "features/conv1"}),
        (two("conv1", "features/second"), None, {"conv1": "features/conv1", "features/second": "features/second"}),
        (two(), {"conv2": "features/second"}, {"conv1": "features/conv1", "conv2": "features/second"}),
        (two(), {"conv2": "features.second"}, {"conv1": "features/conv1", "conv2": "features/second"}),
        (two("a_1", "a_2"), {"a_1": "conv1", "a_*": "second"}, {"a_1": "features/conv1", "a_2": "features/second"}),
        (two("a/conv1", "a/2"), {"a/2": "second", "a/*": "*"}, {"a/conv1": "features/conv1", "a/2": "features/second"}),
        (two("c1", "second"), [(r"c(\d)", r"features/conv\1")], {"c1": "features/conv1", "second": "features/second"}),
        (two("CONV1", "SECOND"), str.lower, {"CONV1": "features/conv1", "SECOND": "features/second"}),
    ],
)  # fmt: skip
def test_layers_find_their_links(net: Net, rename: Any, expected: dict[str, str]) -> None:
    chain = nested()
    report = bridge.transplant(net, chain, rename)
    assert paths(report) == expected
    assert np.array_equal(chain.features.conv1.W.array, net.layers[1].weight)


def test_characters_that_python_lacks_are_underscores() -> None:
    first, second = convs()
    chain = holder(conv1_3x3=first, inception_3a=holder(conv_1=second))
    net = two("conv1/3x3", "conv-1")
    assert paths(bridge.transplant(net, chain)) == {"conv1/3x3": "conv1_3x3", "conv-1": "inception_3a/conv_1"}


def test_a_name_that_two_links_end_in_is_not_guessed() -> None:
    L = links()
    chain = holder(a=holder(conv1=L.Convolution2D(2, 3, 3)), b=holder(conv1=L.Convolution2D(2, 3, 3)))
    report = bridge.transplant(two(), chain)
    assert not report.filled
    assert {row.detail for row in report.missing if row.layer} == {
        "several links of that name: a/conv1, b/conv1", "no link 'conv2'"
    }  # fmt: skip
    assert {row.path for row in report.missing if not row.layer} == {"a/conv1/W", "a/conv1/b", "b/conv1/W", "b/conv1/b"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"rename": {"conv9": "x"}}, r"rename: no layer with blobs is called 'conv9'\n  hint: did you mean 'conv[12]'"),
        ({"rename": {"cov*": "x"}}, r"no layer with blobs is called 'cov\*'\n  hint: did you mean 'conv[12]'"),
        ({"rename": {"conv?": "x"}}, "no layer with blobs is called 'conv\\?'"),
        ({"rename": {"data": "conv1"}}, "no layer with blobs is called 'data'"),
        (
            {"rename": {"conv1": "features/conv11"}},
            "layer 'conv1': no link 'features/conv11'\n  hint: .*'features/conv1'",
        ),
        ({"rename": {"c*v*": "x"}}, r"'c\*v\*' has 2 \*, expected one"),
        ({"rename": {"conv1": 1}}, "layer 'conv1' becomes 1, expected a name"),
        ({"rename": lambda name: None}, "layer 'conv1' becomes None, expected a name"),
        ({"rename": [("cnv1", "conv1")]}, "no layer with blobs is called 'cnv1'\n  hint: did you mean 'conv[12]'"),
        ({"rename": [("conv(", "conv1")]}, "expected a mapping, pairs of a regular expression"),
        ({"rename": ["conv1"]}, "expected a mapping, pairs of a regular expression"),
        ({"rename": [("conv1", r"x\2")]}, r"'x\\2' is no valid replacement for 'conv1'"),
        ({"rename": {"conv1": "conv1"}, "by": "order"}, "rename has no meaning with by='order'"),
        ({"rename": {"conv*": "conv1"}}, "layers 'conv1' and 'conv2' both go to 'features/conv1/W'"),
        ({"skip": ["fc8"]}, "nothing is called 'fc8'"),
        ({"skip": ["cnv*"]}, r"nothing is called 'cnv\*'\n  hint: did you mean 'conv[12]'"),
        ({"by": "shape"}, "expected 'name' or 'order'"),
    ],
)
def test_a_wrong_call_fills_nothing(arguments: dict[str, Any], problem: str) -> None:
    chain = nested()
    before = bits(chain)
    with pytest.raises(UsageError, match=problem):
        bridge.transplant(two(), chain, **arguments)
    assert bits(chain) == before


@pytest.mark.parametrize("skip", ["conv1", ["conv1"], ["*1"], ["features/conv1"]])
def test_layers_and_links_can_be_left_out(skip: list[str]) -> None:
    chain = nested()
    before = chain.features.conv1.W.array.copy()
    report = bridge.transplant(two(), chain, {"conv2": "features/second"}, skip)
    assert np.array_equal(chain.features.conv1.W.array, before)
    assert paths(report) == {"conv2": "features/second"}
    assert {row.state for row in report.rows if "conv1" in row.layer + row.path} == {"skipped"}


def test_shared_parameters_are_filled_once() -> None:
    text = """
    layer { name: "a" type: "Input" top: "a" input_param { shape { dim: 1 dim: 2 } } }
    layer { name: "ip" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } param { name: "b" }
      inner_product_param { num_output: 2 } }
    layer { name: "ip_p" type: "InnerProduct" bottom: "b" top: "c" param { name: "w" } param { name: "b" }
      inner_product_param { num_output: 2 } }
    """
    net = nets.make(text)
    chain = holder(ip=links().Linear(2, 2))
    report = bridge.transplant(net, chain, strict=True)
    assert [row.state for row in report.rows] == ["filled", "filled", "skipped", "skipped"]
    assert {row.detail for row in report.skipped} == {"shared with layer 'ip'"}
    chain.ip.W.array[...] = 5
    back = bridge.from_chain(chain, net)
    assert back["ip_p"].weight is back["ip"].weight
    assert (back["ip"].weight == 5).all()


def test_two_values_for_a_parameter_that_layers_share_are_refused_on_the_way_back() -> None:
    text = """
    layer { name: "a" type: "Input" top: "a" input_param { shape { dim: 1 dim: 2 } } }
    layer { name: "ip" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } inner_product_param { num_output: 2 } }
    layer { name: "q" type: "InnerProduct" bottom: "b" top: "c" param { name: "w" } inner_product_param { num_output: 2 } }
    """  # noqa: E501
    net = nets.make(text)
    chain = holder(ip=links().Linear(2, 2), q=links().Linear(2, 2))
    bridge.transplant(net, chain)
    bridge.from_chain(chain, net)
    chain.q.W.array[...] = 5
    with pytest.raises(ModelError, match="several values for a parameter that layers share"):
        bridge.from_chain(chain, net)


def test_a_link_alone_is_a_chain_too() -> None:
    link = links().Linear(18, 6)
    net = one(IP, (6, 18), (6,))
    report = bridge.transplant(net, link, {"l": ""}, strict=True)
    assert [row.path for row in report.filled] == ["W", "b"]
    assert np.array_equal(link.W.array, net["l"].weight)


def test_a_built_chain_of_another_net_is_filled_by_its_layers_names() -> None:
    need("chainer")
    net = two("conv1/3x3", "params")
    chain = bridge.build_chain(two("conv1/3x3", "params"))
    for param in chain.params():
        param.array[...] = 0
    assert not bridge.transplant(net, chain, strict=True).skipped
    assert np.array_equal(chain.child("params").W.array, net["params"].weight)


# ---- order ------------------------------------------------------------------------------------


def test_layers_and_links_meet_in_order_whatever_their_names() -> None:
    L = links()
    chain = holder(
        zeta=L.Convolution2D(2, 3, 3), extra=L.Convolution2D(3, 3, 3), alpha=L.Convolution2D(None, 4, 1),
        head=L.Linear(9),
    )  # fmt: skip
    report = bridge.transplant(two(), chain, by="order")
    assert paths(report) == {"conv1": "zeta", "conv2": "alpha"}
    assert {row.path for row in report.missing} == {"extra/W", "extra/b", "head/W", "head/b"}


@settings(max_examples=30)
@given(data=st.data())
def test_as_many_as_possible_meet_and_never_across(data: st.DataObject) -> None:
    need("chainer")
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    wanted = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }\n' + "".join(
        f'layer {{ name: "ip{i}" type: "InnerProduct" bottom: "x" top: "y{i}" '
        f"inner_product_param {{ num_output: {n} }} }}\n"
        for i, n in enumerate(sizes)
    )
    chain = holder(**{f"l{9 - i}": links().Linear(2, n) for i, n in enumerate(wanted)})
    report = bridge.transplant(nets.make(text), chain, by="order")
    met = [(int(layer[2:]), 9 - int(path[1:])) for layer, path in paths(report).items()]
    assert met == sorted(met)
    assert all(sizes[i] == wanted[j] for i, j in met)
    assert len(met) == longest_common(sizes, wanted)


def longest_common(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))
