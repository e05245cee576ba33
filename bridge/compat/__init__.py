"""Chainer 7.8.1, ChainerMN and onnx_chainer on today's NumPy, protobuf, onnx and Python.

:func:`install` puts a finder in front of Python's own. It has the source of Chainer's
modules rewritten, a line or two each, while they are imported. ``import bridge`` has it
called before Chainer is first imported, so that these two lines are all there is to it::

    import bridge
    import chainer

Only modules of ``chainer``, ``chainercv``, ``chainermn`` and ``onnx_chainer`` change, and only those
that need it on the versions installed here (:func:`patches` tells which and why). No
name is put into NumPy, onnx, protobuf or ``pkg_resources``. One function of the standard
library is wrapped, ``multiprocessing.spawn.get_preparation_data``, so that children that
start with a fresh interpreter are patched as well (:mod:`bridge.compat.children`).
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Collection
from types import ModuleType

from bridge.compat.children import follow, follow_request
from bridge.compat.hook import Finder
from bridge.compat.leftovers import clear
from bridge.compat.table import CAFFE_FUNCTION, PATCHES, REQUESTED, Patch
from bridge.errors import MissingExtraError, UsageError
from bridge.extras import pip

__all__ = ["Patch", "import_chainer", "install", "patches"]

PACKAGES = ("chainer", "chainercv", "chainermn", "onnx_chainer")
"""The packages that have modules to patch."""


def install(*, without: Collection[str] = (), caffe_function: bool = False) -> None:
    """Have Chainer's modules patched as they are imported; calling it again adds ``caffe_function`` at most.

    A module that was imported before cannot be patched: other modules hold what it
    defined. Each such module that needs its patch is named in a ``RuntimeWarning``, and
    its patch's ``status`` becomes ``too late``.

    Args:
        without: Names of patches to leave out, to see what one of them does.
        caffe_function: Let ``chainer.links.caffe.CaffeFunction`` be :class:`bridge.chain.CaffeFunction`.
            Modules that imported the name before keep Chainer's own.

    Raises:
        UsageError: There is no patch of a name in ``without``.
    """
    _install(tuple(without))
    if caffe_function:
        _replace_caffe_function()


def _install(without: tuple[str, ...]) -> None:
    known = {patch.name for patch in PATCHES}
    if unknown := sorted(set(without) - known):
        raise UsageError(f"no patch '{unknown[0]}'", hint=f"patches: {', '.join(sorted(known))}")
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        return
    clear(PACKAGES)
    for patch in PATCHES:
        if patch.name in without:
            patch.status = "left out"
        elif patch.module in sys.modules:
            patch.status = "too late" if patch.needed() else "not needed"
    sys.meta_path.insert(0, Finder((*PATCHES, CAFFE_FUNCTION)))
    follow(without)
    late = [patch.module for patch in PATCHES if patch.status == "too late"]
    if late:
        warnings.warn(
            f"imported before bridge.compat.install() and therefore not patched: {', '.join(late)}",
            RuntimeWarning,
            stacklevel=2,
        )


def _replace_caffe_function() -> None:
    """Put this package's CaffeFunction in the place of Chainer's, now or as its module is imported."""
    REQUESTED.add(CAFFE_FUNCTION.name)
    follow_request(CAFFE_FUNCTION.name)
    module = sys.modules.get(CAFFE_FUNCTION.module)
    if module is None:
        return
    if not hasattr(module, "ChainersCaffeFunction"):
        message = f"imported before bridge.compat.install(), and keeps Chainer's CaffeFunction: {module.__name__}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
        return
    ours = importlib.import_module("bridge.chain.caffe_function").CaffeFunction
    for place in (module, sys.modules["chainer.links.caffe"]):
        vars(place)["CaffeFunction"] = ours


def patches() -> tuple[Patch, ...]:
    """Every patch, applied or not, in the order of :data:`bridge.compat.table.PATCHES`."""
    return PATCHES


def import_chainer() -> ModuleType:
    """Chainer, patched where today's packages demand it.

    Raises:
        MissingExtraError: Chainer, or a package that it needs, is not installed.
    """
    install()
    try:
        return importlib.import_module("chainer")
    except ImportError as error:
        problem = "Chainer is not installed" if error.name == "chainer" else f"Chainer does not import: {error}"
        raise MissingExtraError(problem, hint=pip("chainer")) from None
