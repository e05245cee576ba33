"""What an import of Chainer that failed left behind."""

from __future__ import annotations

import sys


def clear(packages: tuple[str, ...]) -> list[str]:
    """Forget the modules of packages that are not imported themselves.

    Where ``import chainer`` fails, Python forgets ``chainer`` and keeps the modules below it that it had loaded. The
    next ``import chainer`` would find these half of a package, and fail with 'partially initialized module'.

    Args:
        packages: Names such as ``chainer``.

    Returns:
        The names of the modules that were forgotten.
    """
    gone = [package for package in packages if package not in sys.modules]
    names = [name for name in sys.modules if any(name.startswith(f"{package}.") for package in gone)]
    for name in names:
        del sys.modules[name]
    return names
