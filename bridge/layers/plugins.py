"""A user's own layer types, from a Python file that the user names.

Nothing is ever loaded because a model asks for it: only a file named with ``--plugin`` or
to :func:`load_plugin`, or a package that offers the type under the entry point group
``weight_bridge.layers`` (see :func:`bridge.layers.base.build_layer`).
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path

from bridge.errors import BridgeError, MissingFileError, UsageError
from bridge.layers.base import REGISTRY

_PREFIX = "bridge_plugin_"
"""Begins the name of each plug-in's module."""


def load_plugin(path: str | Path) -> list[str]:
    """Run a file of layer types, which register themselves with ``@layer_type``.

    Args:
        path: The file. Naming it a second time does nothing.

    Returns:
        The names of the types that it registered.

    Raises:
        MissingFileError: There is no such file.
        UsageError: It fails, or registers nothing.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFileError("no such file", where=f"plugin {path}")
    name = f"{_PREFIX}{file.stem}_{abs(hash(file.resolve())):x}"
    if name in sys.modules:
        return []
    known = dict(REGISTRY)
    try:
        _run(file, name)
    except BaseException:
        sys.modules.pop(name, None)
        REGISTRY.clear()
        REGISTRY.update(known)
        raise
    added = [kind for kind, cls in REGISTRY.items() if cls is not known.get(kind)]
    if not added:
        raise UsageError("registers no layer type", where=f"plugin {path}", hint="decorate a class with @layer_type")
    return added


def _run(file: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError("is not a Python file", where=f"plugin {file}", hint="its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BridgeError as error:
        raise UsageError(str(error.args[0]), where=f"plugin {file}", hint=error.hint) from error
    except Exception as error:  # whatever the user's code raises
        raise UsageError(_told(error, file), where=f"plugin {file}") from error


def fault_of_plugin(error: BaseException) -> str:
    """The file, line and text of an error that the code of a loaded plug-in raised; empty for any other error."""
    files = {getattr(module, "__file__", ""): name for name, module in sys.modules.items() if name.startswith(_PREFIX)}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    if not frames:
        return ""
    last = frames[-1]
    return f"plugin {last.filename}: line {last.lineno}, in {last.name}: {type(error).__name__}: {error}"


def _told(error: Exception, file: Path) -> str:
    """The error in one line, with the line of the plugin that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{f'line {line}: ' if line else ''}{type(error).__name__}: {text}"
