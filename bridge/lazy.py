"""Lazy packages: a name is imported from its module when it is first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
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
