"""The house is in order: what one layer type needs stands in its own file, and nothing grows without bounds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.layers import REGISTRY
from tests.conftest import ROOT

LAYERS = ROOT / "bridge" / "layers"
TABLES = (ROOT / "bridge" / "caffe_files" / "upgrade.py",)
"""V1's numbers and V0's names of layer types: the tables of old files."""
GENERATED = ("caffe_files/proto/caffe_pb2.py", "caffe_files/proto/forks_pb2.py")
LONGEST_FUNCTION, LONGEST_MODULE, LONGEST_TEST_MODULE = 40, 400, 500


def modules(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in found if not path.as_posix().endswith(GENERATED)]


SOURCES = modules("bridge", "backends")
ELSEWHERE = [path for path in SOURCES if LAYERS not in path.parents and path not in TABLES]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def docstrings(tree: ast.AST) -> set[int]:
    """The texts that stand alone as a statement: docstrings of modules, classes, functions and attributes."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def layer_types_named(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every text that is a registered layer type and no docstring, with its line."""
    documented = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in REGISTRY and id(node) not in documented:
            yield node.lineno, str(node.value)


def is_layer(subject: ast.expr) -> bool:
    """Whether an expression is a layer, or its type, by the names in it."""
    match subject:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.lower().rstrip("s").endswith("layer")
        case ast.Subscript(value=inner) | ast.Call(func=ast.Name(id="type"), args=[inner]):
            return is_layer(inner)
    return False


def attributes_looked_up(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every ``getattr``, ``hasattr`` or ``setattr`` of a layer with an attribute's name."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[subject, ast.Constant(), *_]):
                if is_layer(subject):
                    yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_layer_type_is_named_outside_its_own_file(path: Path) -> None:
    """What a part asks of a layer type is a member of its class; see docs/plugins.md."""
    assert list(layer_types_named(parsed(path))) == []


@pytest.mark.parametrize("path", ELSEWHERE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_attribute_of_a_layer_is_looked_up_by_its_name(path: Path) -> None:
    """What a layer has is declared, so that a misspelt name is found by mypy."""
    assert list(attributes_looked_up(parsed(path))) == []


def test_these_tests_find_what_they_look_for() -> None:
    tree = ast.parse('"""ReLU"""\nKIND = {"ReLU"}\nif layer.type == "Pooling":\n    getattr(net.layers[0], "pool")\n')
    assert list(layer_types_named(tree)) == [(2, "ReLU"), (3, "Pooling")]
    assert [line for line, _ in attributes_looked_up(tree)] == [4]
    others = "getattr(module, 'layer_type'); getattr(layer, name); hasattr(data.get(layer.name), 'shape')"
    assert list(attributes_looked_up(ast.parse(others))) == []


# ---- sizes ---------------------------------------------------------------------------------------


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Each function and how many lines it has besides its signature and its docstring."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_modules_are_short(path: Path) -> None:
    assert length(path) <= LONGEST_MODULE
    assert {name: lines for name, lines in functions(parsed(path)) if lines > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("path", modules("tests", "benchmarks"), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_of_tests_are_short(path: Path) -> None:
    assert length(path) <= LONGEST_TEST_MODULE


# ---- names ---------------------------------------------------------------------------------------

TWICE = {
    "F": "Chainer's functions, under the name that Chainer's users have for them",
    "Engine": "the contract of the engines' table: each module has one",
    "available": "used with its module's name: engines.available, readers.available",
    "find": "used with its module's name: engines.find, readers.find",
    "missing": "the contract of the tables: an engine or a reader that has to be tried has one",
    "read": "the contract of the readers' table: each module has one",
    "read_mean": "the table's way to the reader's function of that name",
    "round_half_away": "the same rounding, for ONNX nodes and for Chainer's variables",
    "verify": "the command is named as the function that it calls",
    "finetune": "the command is named as the function that it calls",
    "install": "used with its package's name: bridge.compat.install, bridge.opencv.install, bridge.caffe.install",
    "write": "the contract of the formats' table: each module has one",
}
"""Public names that two modules may define, and why."""

ALONE = ("backends/pycaffe/", "bridge/caffe/")
"""What runs in the interpreter that has Caffe, and what has the names of pycaffe's own modules."""


def public_names(tree: ast.Module) -> Iterator[str]:
    """The names that a module defines for others, without those of its imports."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                found = [name]
            case ast.Assign(targets=targets):
                found = [target.id for target in targets if isinstance(target, ast.Name)]
            case _:
                found = []
        yield from (name for name in found if not name.startswith("_"))


def test_no_public_name_is_defined_twice() -> None:
    """A name that is searched for leads to one place; layer types are found by Caffe's name for them."""
    homes: dict[str, list[str]] = {}
    for path in SOURCES:
        where = str(path.relative_to(ROOT))
        if not where.startswith(ALONE):
            for name in public_names(parsed(path)):
                if not (LAYERS in path.parents and name in REGISTRY):
                    homes.setdefault(name, []).append(where)
    twice = {name: found for name, found in homes.items() if len(found) > 1}
    assert {name: found for name, found in twice.items() if name not in TWICE} == {}
    assert set(TWICE) - set(twice) <= {"missing", "read"}  # an exception that is needed no more goes
