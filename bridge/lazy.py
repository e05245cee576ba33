"""What is put off: names of a package until they are used, and a repair until its package is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any


class LazyPackage(ModuleType):
    """A package with names that are imported when they are first used; made by :func:`lazy`."""

    _homes: Mapping[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        if name in self._homes:
            value = getattr(importlib.import_module(self._homes[name]), name)
            setattr(self, name, value)
            return value
        raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'", name=name, obj=self)

    def __setattr__(self, name: str, value: Any) -> None:
        # Python makes an imported submodule an attribute of its package; transplant.py must not hide transplant().
        if not (name in self._homes and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})


def lazy(package: str, homes: Mapping[str, str]) -> list[str]:
    """Make a package import names when they are first used.

    The package imports the same names under ``if TYPE_CHECKING:``, so that type checkers and editors know them::

        if TYPE_CHECKING:
            from bridge.chain.build import build_chain as build_chain
        else:
            __all__ = lazy(__name__, {"build_chain": "bridge.chain.build"})

    Args:
        package: The package's ``__name__``.
        homes: Name -> the module that defines it; it may be a submodule of the same name.

    Returns:
        The names, for ``__all__``.

    Source: PEP 562; Python's data model, "Customizing module attribute access".
    """
    module = sys.modules[package]
    module.__class__ = LazyPackage
    module.__dict__.update(_homes=homes)
    return sorted(homes)


class BeforeImport:
    """Calls a function before any of some packages is first imported; made by :func:`before_import`.

    It stands on ``sys.meta_path``, finds no module itself, and leaves when it has called the function.

    Source: importlib.abc.MetaPathFinder.
    """

    def __init__(self, packages: Collection[str], module: str, function: str) -> None:
        self.packages, self.module, self.function = frozenset(packages), module, function

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: object = None) -> None:
        """Call the function if the module is one of the packages; in any case leave finding it to the others."""
        if fullname in self.packages and self in sys.meta_path:
            sys.meta_path.remove(self)
            getattr(importlib.import_module(self.module), self.function)()


def before_import(packages: Collection[str], module: str, function: str) -> None:
    """Have a function called before any of some packages is first imported.

    ``before_import(["chainer"], "bridge.compat", "install")`` costs nothing until something imports ``chainer``.
    The function's module is imported then. A package that is imported already calls nothing.

    Args:
        packages: Names of packages.
        module: The module that defines the function.
        function: Its name; it is called without arguments.
    """
    known = [finder for finder in sys.meta_path if isinstance(finder, BeforeImport)]
    if not any(finder.packages == frozenset(packages) for finder in known):
        sys.meta_path.insert(0, BeforeImport(packages, module, function))
