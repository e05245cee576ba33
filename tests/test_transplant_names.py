"""Which layer goes with which link: by names, or by order."""

from __future__ import annotations

import itertools
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
    assert {row.detail for row in report.ambiguous} == {"several links of that name: a/conv1, b/conv1"}
    assert {row.detail for row in report.missing if row.layer} == {"no link 'conv2'"}
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


def test_a_link_one_level_down_is_found_if_it_is_the_only_one_of_its_kind() -> None:
    first, second = convs()
    chain = holder(conv1=holder(conv=first, bn=links().BatchNormalization(3)), trunk=holder(conv2=holder(c=second)))
    assert paths(bridge.transplant(two(), chain)) == {"conv1": "conv1/conv", "conv2": "trunk/conv2/c"}
    chain.conv1.add_link("other", links().Convolution2D(2, 3, 3))
    report = bridge.transplant(two(), chain)
    assert {row.detail for row in report.ambiguous} == {"several links of that name: conv1/conv, conv1/other"}
    with pytest.raises(ModelError, match="layer 'conv1': blob 'weight': several links of that name"):
        bridge.transplant(two(), chain, strict=True)


@settings(max_examples=30)
@given(data=st.data())
def test_without_a_run_they_meet_in_order_where_only_one_alignment_is_possible(data: st.DataObject) -> None:
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
    met = {(int(layer[2:]), 9 - int(path[1:])) for layer, path in paths(report).items()}
    possible = alignments(sizes, wanted)
    assert met == frozenset.intersection(*possible)
    assert all("NotImplementedError" in row.detail or "AttributeError" in row.detail for row in report.ambiguous)


def alignments(a: list[int], b: list[int]) -> list[frozenset[tuple[int, int]]]:
    """All longest sets of pairs of equal numbers in which both indices grow."""
    found = {frozenset[tuple[int, int]]()}
    for i, j in itertools.product(range(len(a)), range(len(b))):
        if a[i] == b[j]:
            found |= {pairs | {(i, j)} for pairs in found if all(k < i and m < j for k, m in pairs)}
    most = max(map(len, found))
    return [pairs for pairs in found if len(pairs) == most]


# ---- the flow of the data -----------------------------------------------------------------------


class Drawn:
    """A graph of fully connected layers and sums, as a net, and as a chain whose links are in another order."""

    def __init__(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, 8), label="layers")
        widths = [data.draw(st.integers(2, 3)) for _ in range(count)]
        self.sources: list[list[int]] = []
        for index in range(count):
            first = data.draw(st.integers(-1, index - 1))
            same = [i for i in range(index) if widths[i] == (widths[first] if first >= 0 else 2) and i != first]
            self.sources.append(
                [first, *data.draw(st.lists(st.sampled_from(same), max_size=2, unique=True))] if same else [first]
            )
        self.widths = widths
        self.names = data.draw(st.permutations([f"ip{index}" for index in range(count)]), label="names")
        self.order = data.draw(st.permutations(range(count)), label="order")

    def net(self) -> Net:
        lines = ['layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }']
        for index, sources in enumerate(self.sources):
            tops = ["x" if source < 0 else f"ip{source}" for source in sources]
            bottom = tops[0]
            if len(tops) > 1:
                bottom = f"sum{index}"
                wires = " ".join(f'bottom: "{top}"' for top in tops)
                lines.append(f'layer {{ name: "{bottom}" type: "Eltwise" {wires} top: "{bottom}" }}')
            lines.append(
                f'layer {{ name: "ip{index}" type: "InnerProduct" bottom: "{bottom}" top: "ip{index}" '
                f"inner_product_param {{ num_output: {self.widths[index]} }} }}"
            )
        return nets.make("\n".join(lines))

    def chain(self) -> Any:
        from bridge.chain.functions import chainer

        drawn = self

        class Written(chainer.Chain):  # type: ignore[misc]
            def forward(self, x: Any) -> Any:
                values = {-1: x}
                for index, sources in enumerate(drawn.sources):
                    total = sum((values[source] for source in sources[1:]), start=values[sources[0]])
                    values[index] = self[drawn.names[index]](total)
                return [values[index] for index in drawn.order]

        chain = Written()
        for index in self.order:
            chain.add_link(self.names[index], chainer.links.Linear(None, self.widths[index]))
        return chain


@settings(max_examples=100)
@given(data=st.data())
def test_by_order_is_right_or_ambiguous_whatever_the_names_and_the_order_of_definition(data: st.DataObject) -> None:
    need("chainer")
    drawn = Drawn(data)
    net, chain = drawn.net(), drawn.chain()
    report = bridge.transplant(net, chain, by="order")
    assert {row.state for row in report.rows if row.layer} <= {"filled", "ambiguous"}
    for layer, path in paths(report).items():
        assert path == drawn.names[int(layer[2:])]
        assert np.array_equal(chain[path].W.array, net[layer].weight)
    for row in report.ambiguous:
        assert drawn.names[int(row.layer[2:])] in row.detail


def test_a_shortcut_is_told_from_the_branch_beside_it() -> None:
    from bridge.chain.functions import chainer

    L = links()

    class Block(chainer.Chain):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(a=L.Linear(2, 2), b=L.Linear(2, 2), c=L.Linear(2, 2), shortcut=L.Linear(2, 2))

        def forward(self, x: Any) -> Any:
            return self.c(self.b(self.a(x))) + self.shortcut(x)

    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 2 } } }' + "".join(
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" '
        "inner_product_param { num_output: 2 } }"
        for name, bottom in (("branch1", "x"), ("branch2a", "x"), ("branch2b", "branch2a"), ("branch2c", "branch2b"))
    )
    text += 'layer { name: "sum" type: "Eltwise" bottom: "branch1" bottom: "branch2c" top: "sum" }'
    net = nets.make(text)
    report = bridge.transplant(net, Block(), by="order", strict=True)
    assert paths(report) == {"branch1": "shortcut", "branch2a": "a", "branch2b": "b", "branch2c": "c"}


def test_a_run_leaves_the_chain_as_it_was() -> None:
    from bridge.chain.functions import chainer
    from bridge.chain.tracing import trace

    L = links()
    chain = chainer.Sequential(L.Convolution2D(None, 3, 3), L.BatchNormalization(axis=(0, 2, 3)), L.Linear(None, 4))
    sizes = [param.shape if param.is_initialized else None for param in chain.params(include_uninit=True)]
    state = np.random.get_state()[1].copy()
    run = trace(chain, [np.zeros((1, 2, 5, 5), "f")])
    kinds = [type(run.links[path]).__name__ for path in run.before]
    assert kinds == ["Convolution2D", "BatchNormalization", "Linear"]
    assert list(run.before.values()) == [{""}, *({path} for path in list(run.before)[:2])]
    assert None in sizes
    assert [param.shape if param.is_initialized else None for param in chain.params(include_uninit=True)] == sizes
    assert np.array_equal(np.random.get_state()[1], state)


def test_args_say_what_a_chain_is_called_with() -> None:
    from bridge.chain.functions import F, chainer

    L = links()

    class Loss(chainer.Chain):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(late=L.Linear(2, 2), early=L.Linear(2, 2))

        def forward(self, x: Any, t: Any) -> Any:
            return F.softmax_cross_entropy(self.late(self.early(x)), t)

    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 2 } } }' + "".join(
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" '
        "inner_product_param { num_output: 2 } }"
        for name, bottom in (("ip1", "x"), ("ip2", "ip1"))
    )
    args = (np.zeros((1, 2), "f"), np.zeros(1, "i"))
    assert paths(bridge.transplant(nets.make(text), Loss(), by="order", args=args)) == {"ip1": "early", "ip2": "late"}
