"""``import caffe`` that means :mod:`bridge.caffe`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from bridge.errors import FormatError, MissingFileError, UsageError

_NAME, _OWN = "caffe", "bridge.caffe"
_MESSAGES = "bridge.caffe.proto.caffe_pb2"


def install() -> None:
    """Have ``import caffe``, and ``import caffe.io`` and so on, mean this package; again does nothing.

    Raises:
        UsageError: Another ``caffe`` was imported before.
    """
    known = sys.modules.get(_NAME)
    own = importlib.import_module(_OWN)
    if known is not None and known is not own:
        raise UsageError(
            f"another caffe was imported before, from {getattr(known, '__file__', None)}",
            hint="call bridge.caffe.install() before the first 'import caffe'",
        )
    sys.modules[_NAME] = own
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds ``caffe.X`` where ``bridge.caffe.X`` is; what a fork adds, in the script's own ``caffe`` folders.

    A ``caffe_pb2.py`` of the script's own that protobuf cannot load any more is this package's.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a submodule; ``None`` for all else."""
        if not fullname.startswith(f"{_NAME}."):
            return ModuleSpec(fullname, _Loader(_MESSAGES)) if _is_old_messages(fullname, path, target) else None
        rest = fullname.removeprefix(f"{_NAME}.")
        own = f"{_OWN}.{rest}"
        found = _own_spec(own)
        if found is None:
            folders = [os.path.join(folder or os.curdir, _NAME) for folder in sys.path]
            return None if "." in rest else PathFinder.find_spec(fullname, folders, target)
        return ModuleSpec(fullname, _Loader(own), is_package=found.submodule_search_locations is not None)


def _is_old_messages(name: str, path: Sequence[str] | None, target: ModuleType | None) -> bool:
    """Whether a module holds Caffe's messages in the form of protoc before 3.19, which protobuf 4 refuses."""
    if not name.endswith("_pb2"):
        return False
    found = PathFinder.find_spec(name, path, target)
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        return False
    text = Path(found.origin).read_text(encoding="utf-8", errors="replace")
    return all(part in text for part in ("_descriptor.FieldDescriptor(", "package='caffe'", "NetParameter"))


def _own_spec(name: str) -> ModuleSpec | None:
    """The spec of a module of this package; ``None`` if there is no such module."""
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:  # it would lie in a package that is a fork's
        return None


class _Loader(Loader):
    """Gives the module that there is already."""

    def __init__(self, own: str) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The submodule of this package."""
        module = importlib.import_module(self._own)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to do, but to undo what Python's import did to a module that was complete."""
        module.__spec__ = self._spec


def restore_numpy_names() -> None:
    """Give NumPy back the names ``float``, ``int``, ``object`` and so on, which scripts from before 2022 use.

    Each was Python's own type of that name. Names that NumPy has are left alone.

    Source: NumPy 1.20 release notes, "Using the aliases of builtin types like np.int is deprecated".
    """
    import numpy as np

    for name, kind in {
        "long": int,
        "unicode": str,
        **{t.__name__: t for t in (bool, complex, float, int, object, str)},
    }.items():
        if name not in vars(np):
            setattr(np, name, kind)


_PYTHON_2 = "a script of Python 2? 'pip install fissix' and 'python -m fissix -w SCRIPT.py' rewrite it, as 2to3 did"


def run_script(path: str, arguments: Sequence[str]) -> None:
    """Run a script as ``python SCRIPT ARGS`` does, with an ``import caffe`` that means this package.

    Args:
        path: The script.
        arguments: What it finds in ``sys.argv`` behind its own name.

    Raises:
        MissingFileError: The script does not exist.
        FormatError: It is a script of Python 2.
    """
    if not os.path.isfile(path):
        raise MissingFileError("does not exist", expected="a script in Python", where=path)
    install()
    restore_numpy_names()
    sys.argv[:] = [path, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(path))
    try:
        runpy.run_path(path, run_name="__main__")
    except SyntaxError as error:
        if error.filename != path:
            raise
        raise FormatError(f"line {error.lineno}: {error.msg}", where=path, hint=_PYTHON_2) from None
