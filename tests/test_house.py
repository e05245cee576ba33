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
GENERATED = ("caffe_pb2.py",)
LONGEST_FUNCTION, LONGEST_MODULE, LONGEST_TEST_MODULE = 40, 400, 450


def modules(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in found if path.name not in GENERATED]


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


def attributes_looked_up(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every ``getattr``, ``hasattr`` or ``setattr`` of a layer with an attribute's name."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[subject, ast.Constant(), *_]):
                if "layer" in ast.unparse(subject).lower():
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
    tree = ast.parse('"""ReLU"""\nKIND = {"ReLU"}\nif layer.type == "Pooling":\n    getattr(layer, "pool")\n')
    assert list(layer_types_named(tree)) == [(2, "ReLU"), (3, "Pooling")]
    assert [line for line, _ in attributes_looked_up(tree)] == [4]
    assert list(attributes_looked_up(ast.parse("getattr(module, 'layer_type'); getattr(layer, name)"))) == []


# ---- sizes ---------------------------------------------------------------------------------------


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Each function and how many lines it has besides its docstring."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            text = ast.get_docstring(node, clean=False) is not None
            lines = (node.end_lineno or 0) - node.lineno + 1
            yield node.name, lines - ((first.end_lineno or 0) - first.lineno + 1 if text else 0)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_and_modules_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE
    assert {name: lines for name, lines in functions(parsed(path)) if lines > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("path", modules("tests", "benchmarks"), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_of_tests_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_TEST_MODULE
