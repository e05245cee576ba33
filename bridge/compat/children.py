"""Makes the children of ``multiprocessing`` install the hook before they import anything else.

A forked child inherits it. A child that starts with a fresh interpreter (spawn), or is
forked from one (forkserver), first unpickles its "preparation data", then imports the
parent's main module, then unpickles its target. An entry is added to those data whose
unpickling runs :mod:`bridge.compat.child`, by its path, since the parent's ``sys.path``
is not there yet. The forkserver itself, which imports modules on behalf of its children,
is told to import that module, and to leave the main module to the children.

Not reached: children of libraries that replace ``multiprocessing.spawn`` by a copy of
their own (loky), and programs started by ``subprocess``.
"""

from __future__ import annotations

import functools
import multiprocessing
import runpy
from multiprocessing import spawn
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("child.py")


class _Installer:
    """An object whose unpickling installs the hook."""

    def __init__(self, without: tuple[str, ...]) -> None:
        self.without = without

    def __reduce__(self) -> tuple[Any, ...]:
        return runpy.run_path, (str(_CHILD), {"without": self.without, "requested": tuple(_requested)})


_requested: set[str] = set()


def follow_request(name: str) -> None:
    """Have all children that start from now on apply that patch too, which applies on request only."""
    _requested.add(name)


def follow(without: tuple[str, ...] = ()) -> None:
    """Have all children that start from now on install the hook, leaving out the same patches."""
    prepare = spawn.get_preparation_data

    @functools.wraps(prepare)
    def prepare_with_hook(name: str) -> dict[str, Any]:
        return {**prepare(name), "bridge.compat": _Installer(without)}

    if _CHILD.is_file():  # not in an archive, which runpy could not run it from
        spawn.get_preparation_data = prepare_with_hook
    if not without and "forkserver" in multiprocessing.get_all_start_methods():
        _preload()


def _preload() -> None:
    """Put the hook in front of what a forkserver, if one is started later, imports."""
    from multiprocessing import forkserver

    chosen: list[str] = getattr(forkserver._forkserver, "_preload_modules", [])
    others = [module for module in chosen if module not in ("__main__", "bridge.compat.child")]
    forkserver.set_forkserver_preload(["bridge.compat.child", *others])
