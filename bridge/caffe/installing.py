"""``import caffe`` that means :mod:`bridge.caffe`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from bridge.errors import MissingFileError, UsageError

_NAME, _OWN = "caffe", "bridge.caffe"


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
    """Finds ``caffe.X`` where ``bridge.caffe.X`` is."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a submodule; ``None`` for all else."""
        if not fullname.startswith(f"{_NAME}."):
            return None
        own = f"{_OWN}.{fullname.removeprefix(f'{_NAME}.')}"
        found = importlib.util.find_spec(own)
        if found is None:
            return None
        return ModuleSpec(fullname, _Loader(own), is_package=found.submodule_search_locations is not None)


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


def run_script(path: str, arguments: Sequence[str]) -> None:
    """Run a script as ``python SCRIPT ARGS`` does, with an ``import caffe`` that means this package.

    Args:
        path: The script.
        arguments: What it finds in ``sys.argv`` behind its own name.

    Raises:
        MissingFileError: The script does not exist.
    """
    if not os.path.isfile(path):
        raise MissingFileError("does not exist", expected="a script in Python", where=path)
    install()
    sys.argv[:] = [path, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(path))
    runpy.run_path(path, run_name="__main__")
