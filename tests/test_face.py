"""The public face: what ``bridge`` offers, that each name is documented, and what importing it costs."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import bridge
from bridge import errors
from bridge.cli import COMMANDS
from tests.conftest import ROOT, need

FACE = {
    "Blob", "BridgeError", "BudgetError", "CaffeLayer", "ChangedError", "Config", "DifferenceError",
    "FormatError", "Layer", "Listener", "Message",
    "MissingExtraError", "MissingFileError", "ModelError", "Net", "NotFoundError", "OutputError", "Preprocess",
    "Recipe", "Report", "TransplantReport", "UnknownFieldError", "UnsupportedLayerError", "UsageError", "build_chain",
    "classify", "export_chain", "export_onnx", "finetune", "freeze", "from_chain", "inference_net", "layer_type",
    "load", "load_plugin", "read_solver", "save", "thaw", "to_onnx", "transplant", "verify",
}  # fmt: skip
"""Every public name; one that goes breaks somebody's script."""

OF_CHAINER = {"Config", "Listener", "Recipe", "TransplantReport", "build_chain", "classify", "export_chain", "finetune",
              "freeze", "from_chain", "read_solver", "thaw", "transplant"}  # fmt: skip
"""Those whose modules need Chainer."""

LAZY = sorted(path for path in (ROOT / "bridge").rglob("__init__.py") if "lazy(" in path.read_text(encoding="utf-8"))

HEAVY = ("chainer", "click", "google", "h5py", "matplotlib", "numpy", "onnx", "onnxruntime", "platformdirs", "rich")


def test_these_names_and_no_others_are_public() -> None:
    assert set(bridge.__all__) == FACE
    assert set(dir(bridge)) >= FACE


def test_every_error_is_public() -> None:
    own = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, errors.BridgeError)
    }
    assert own <= FACE
    assert all(issubclass(getattr(bridge, name), bridge.BridgeError) for name in own)


@pytest.mark.parametrize("name", sorted(FACE))
def test_a_public_name_is_documented(name: str) -> None:
    if name in OF_CHAINER:
        need("chainer")
    found = getattr(bridge, name)
    text = inspect.getdoc(found) or ""
    assert len(text) > 30
    assert not text.startswith(f"{name}(")  # what dataclasses write by themselves
    if inspect.isfunction(found):
        missing = [word for word in inspect.signature(found).parameters if not re.search(rf"\b{word}\b", text)]
        assert not missing


@pytest.mark.parametrize("name", sorted(FACE))
def test_a_public_function_is_typed(name: str) -> None:
    """No option whose name is known goes through ``**options: Any``."""
    if name in OF_CHAINER:
        need("chainer")
    found = getattr(bridge, name)
    if inspect.isfunction(found):
        signature = inspect.signature(found)
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty
            assert not (parameter.kind is parameter.VAR_KEYWORD and parameter.annotation == "Any")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'bridge' has no attribute 'laod'"):
        bridge.laod  # type: ignore[attr-defined]  # noqa: B018


def _imported(code: str) -> list[str]:
    line = [sys.executable, "-c", f"import sys; before = set(sys.modules); {code}; print(*set(sys.modules) - before)"]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_package_imports_next_to_nothing() -> None:
    made = _imported("import bridge")
    assert {name for name in made if name.startswith(("bridge", "backends"))} == {"bridge", "bridge.lazy"}
    assert not [name for name in made if name.partition(".")[0] in HEAVY]
    assert len(made) < 40  # typing, importlib, collections.abc and what they need


@pytest.mark.parametrize("package", ["bridge.chain", "bridge.exporting", "bridge.finetuning", "bridge.onnx_export"])
def test_importing_a_part_imports_no_framework(package: str) -> None:
    assert not {"chainer", "numpy", "onnx"} & set(_imported(f"import {package}"))


@pytest.mark.parametrize("path", LAZY, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_a_lazy_package_tells_type_checkers_the_same(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = {
        (name.asname, node.module)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    tables = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    table = {(k.value, v.value) for k, v in zip(tables[0].keys, tables[0].values, strict=True)}  # type: ignore[union-attr]
    assert imports == table


@pytest.mark.parametrize("path", LAZY, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_no_submodule_hides_a_lazy_name(path: Path) -> None:
    """Also where a module that has the name was imported first: chain/transplant.py and transplant()."""
    need("chainer")
    package = importlib.import_module(".".join(path.parent.relative_to(ROOT).parts))
    for module in path.parent.glob("*.py"):
        importlib.import_module(f"{package.__name__}.{module.stem}" if module != path else package.__name__)
    assert package.__all__
    assert not [name for name in package.__all__ if inspect.ismodule(getattr(package, name))]


def test_the_version_is_in_one_place() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert not re.search(r"^version\s*=", project, re.MULTILINE)
    assert 'path = "bridge/__init__.py"' in project
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z.]+\d+)?", bridge.__version__)


def test_the_installed_package_has_that_version() -> None:
    """Holds for a wheel and for an editable install; a clone on the path alone has no metadata."""
    try:
        installed = importlib.metadata.version("weight-bridge")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("weight-bridge is not installed, only on the path")
    assert installed == bridge.__version__


# -- the same words in Python and on the command line ----------------------------------------------

OTHERWISE = {
    "files": "the arguments themselves",
    "output": "the argument path, or the run's folder",
    "path": "the option -o",
    "plugins": "bridge.load_plugin(file), before anything is loaded",
    "json_file": "report.to_json()",
    "html_file": "report.write_html(path)",
    "to_dialect": "dialect of bridge.save; --dialect says how FILES are read",
    "format_": "format of bridge.save; the methods of bridge.Report",
}
"""Options that Python has in another form."""


def _arguments(command: str) -> set[str]:
    from bridge.files.load import Reading

    functions = {"verify": [bridge.verify], "export": [bridge.export_onnx], "convert": [bridge.save]}[command]
    names = {name for function in functions for name in inspect.signature(function).parameters}
    if command == "export":
        names |= {field.name for field in dataclasses.fields(bridge.Preprocess)}
    return names | set(Reading.__annotations__)


@pytest.mark.parametrize("command", ["verify", "export", "convert"])
def test_an_option_has_the_same_word_in_python(command: str) -> None:
    found: click.Command = getattr(importlib.import_module(f"bridge.cli.{command}"), command)
    known = _arguments(command)
    for parameter in found.params:
        if parameter.name in OTHERWISE or not parameter.expose_value:
            continue
        assert parameter.name in known, f"{command}: no argument {parameter.name}"
        words = {word.lstrip("-").replace("-", "_") for word in (*parameter.opts, *parameter.secondary_opts)}
        # An option that may be repeated has the singular: --input, and inputs in Python.
        assert words & {parameter.name, parameter.name.removesuffix("s")}, f"{command}: {parameter.opts}"


def test_every_command_is_listed_with_its_help() -> None:
    for name, summary in COMMANDS.items():
        if name == "finetune":
            need("chainer")
        command: click.Command = getattr(importlib.import_module(f"bridge.cli.{name}"), name)
        assert command.help
        assert summary.endswith(".")
