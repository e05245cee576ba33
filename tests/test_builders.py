"""What layers are given has what bridge.layers.builders declares, with the same arguments."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import onnx
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.layers.builders import ChainerFunctions, Extents, LayerArrays, OnnxBuilder
from bridge.onnx_export.builder import GraphBuilder
from bridge.onnx_export.dims import Dims
from tests.conftest import need

PACKAGE = Path(bridge.__file__).parent
MODULES = sorted(path.stem for path in (PACKAGE / "chain" / "functions").glob("[!_]*.py"))
SHARED = """
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" }
            inner_product_param { num_output: 3 } }
    layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" }
            inner_product_param { num_output: 3 } }
"""


class Empty(Protocol):
    """What every protocol has."""


def declared(protocol: Any) -> dict[str, Any]:
    """The members that a protocol declares, by name."""
    return {
        name: value for name, value in vars(protocol).items() if name not in dir(Empty) and name != "__annotations__"
    }


def parameters(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def problems(protocol: Any, real: Any) -> list[str]:
    """The members of a protocol that ``real`` does not have, or not with these parameters."""
    wrong = []
    for name, value in declared(protocol).items():
        if name.startswith("__"):
            fits = hasattr(type(real), name)
        elif isinstance(value, property):
            fits = hasattr(real, name)
        else:
            fits = hasattr(real, name) and parameters(getattr(real, name)) == parameters(value)[1:]
        wrong += [] if fits else [name]
    return wrong


def functions() -> Any:
    need("chainer")
    from bridge.chain.functions import F

    return F


def source(pattern: str) -> set[str]:
    """What a pattern finds in the files of the layer types."""
    return {found for path in (PACKAGE / "layers").glob("*.py") for found in re.findall(pattern, path.read_text())}


class Narrow:
    """Meets the protocol but for a name, a default, a parameter and a member."""

    opset, FLOAT = 17, 1

    def ints(self, numbers: Any) -> Any: ...
    def const(self, array: Any, name: str = "constant", role: str = "") -> Any: ...
    def shape(self, value: str) -> Any: ...
    def extents(self, x: str, start: int, stop: int, step: int) -> Any: ...


def test_a_difference_is_found() -> None:
    wrong = problems(OnnxBuilder, Narrow())
    assert {"ints", "const", "extents", "INT64", "__getattr__", "op"} <= set(wrong)
    assert not {"opset", "FLOAT", "shape"} & set(wrong)


def test_the_onnx_builder_is_as_declared() -> None:
    assert problems(OnnxBuilder, GraphBuilder(17)) == []


def test_the_shape_of_a_bottom_is_as_declared() -> None:
    dims = Dims((8, 3, 5), [frozenset(["n"]), frozenset(), frozenset()], ["n", None, None])
    assert problems(Extents, dims) == []
    assert (len(dims), dims[1], dims[1:], dims.fixed(0), dims.fixed(1)) == (3, 3, (3, 5), False, True)


def test_the_arrays_of_a_layer_are_as_declared() -> None:
    """In a link of its own, and where the weight is in another layer's link."""
    need("chainer")
    chain = bridge.build_chain(assemble(None, prototxt.parse(SHARED)))
    own, shared = chain._link(1), chain._link(2)
    assert type(own) is not type(shared)
    for link in (own, shared):
        assert problems(LayerArrays, link) in ([], ["__getattr__"])  # Chainer's links have plain attributes
        assert (link.W.shape, link.b.shape, link.frozen) == ((3, 3), (3,), False)
        with pytest.raises(AttributeError):
            _ = link.gamma


def test_the_functions_are_as_declared() -> None:
    assert problems(ChainerFunctions, functions()) == []


def test_every_function_of_ours_is_declared() -> None:
    functions()
    from bridge.chain.functions import HOMES

    listed = {name for name in declared(ChainerFunctions) if not name.startswith("__")}
    assert set(HOMES) == listed - {"chainer", "as_variable"}


def test_a_function_of_chainers_name_has_chainers_parameters() -> None:
    ours = functions()
    from bridge.chain.functions import HOMES

    both = [name for name in HOMES if hasattr(ours.chainer.functions, name) and not name.startswith("caffe_")]
    assert len(both) >= 6
    for name in both:
        own = parameters(getattr(ours, name))
        assert own == parameters(getattr(ours.chainer.functions, name))[: len(own)], name


def test_a_function_is_in_the_file_of_its_layer() -> None:
    functions()
    from bridge.chain.functions import HOMES

    layers = {path.stem for path in (PACKAGE / "layers").glob("*.py")}
    assert {name for name in MODULES if not name.startswith("helper_")} <= layers & set(HOMES.values())
    for name, home in HOMES.items():
        assert name.startswith(f"caffe_{home}") or not name.startswith("caffe_")
        assert getattr(functions(), name).__module__ == f"bridge.chain.functions.{home}"


def test_a_module_does_not_hide_the_function_of_its_name() -> None:
    ours = type(functions())()
    from bridge.chain.functions import HOMES

    for module in MODULES:
        importlib.import_module(f"bridge.chain.functions.{module}")
    assert {"dropout", "elu", "sigmoid", "softmax"} <= set(HOMES) & set(MODULES)
    assert [name for name in HOMES if not inspect.isfunction(getattr(ours, name))] == []


@pytest.mark.parametrize("name", ["caffe_poling", "pooling"])
def test_a_name_that_is_no_function_is_an_error_that_names_the_nearest(name: str) -> None:
    with pytest.raises(AttributeError, match=f"F has no function '{name}'; did you mean .*'caffe_pooling'"):
        getattr(functions(), name)


def test_layers_call_functions_that_exist() -> None:
    functions()
    from bridge.chain.functions import F

    used = source(r"\bF\.(\w+)")
    assert len(used) > 40
    assert [name for name in sorted(used) if not hasattr(F, name)] == []


def test_layers_call_builder_methods_that_are_declared() -> None:
    used = source(r"\bg\.([a-z]\w*)")
    assert {"shape", "blob", "const"} <= used <= set(declared(OnnxBuilder))


def test_layers_emit_operators_that_onnx_has() -> None:
    used = source(r"\bg\.([A-Z]\w*)\(")
    assert len(used) > 40
    assert [name for name in sorted(used) if not onnx.defs.has(name)] == []
