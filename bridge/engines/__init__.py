"""Engines run a net. Each is a module of this package, imported when it is used.

An engine is made for one net and runs it on inputs; it gives the net's outputs, or
what every layer wrote at the moment it ran, so that layers which work in place can be
compared too.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bridge.caffe_files.inference import inference_net
from bridge.errors import MissingExtraError, UsageError
from bridge.extras import pip
from bridge.schema import Net

Arrays = Mapping[str, np.ndarray]
Tops = tuple["np.ndarray | None", ...]


class Engine(Protocol):
    """The contract of an engine, made as ``Engine(net, **options)`` for a :class:`~bridge.schema.ServedNet`.

    Inputs that only training needs may be given. Arrays are float32; inputs and outputs go by blob names.
    The static method ``Engine.lacking(net, **options)`` gives the indices of the layers that the engine cannot run.
    """

    def outputs(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The net's output blobs for the given input blobs."""
        ...

    def tops(self, inputs: Arrays) -> list[Tops]:
        """Per layer of the net, what it wrote right after it ran; ``None`` where that cannot be seen."""
        ...


@dataclass(frozen=True)
class EngineEntry:
    """One line of the table: a name, the packages it needs, and how to install them.

    ``probed`` marks an engine whose module says by ``missing(python)`` whether it works: a package alone does not.
    ``asked`` marks an engine that is known to differ from Caffe, and so runs only when it is
    asked for by name. ``piecewise`` marks one that gives the same for a few layers alone as for the whole net.
    """

    name: str
    summary: str
    needs: tuple[str, ...]
    hint: str
    probed: bool = False
    asked: bool = False
    piecewise: bool = False

    @property
    def module(self) -> str:
        """The module that has its ``Engine``."""
        return f"bridge.engines.{self.name}"


_OPENCV = "pip install 'opencv-python-headless<5'"
ENGINES: dict[str, EngineEntry] = {
    entry.name: entry
    for entry in (
        EngineEntry(
            "onnxruntime", "ONNX Runtime, on the exported model", ("onnxruntime",), pip("runtime"), piecewise=True
        ),
        EngineEntry("chainer", "Chainer, on the built chain", ("chainer",), pip("chainer"), piecewise=True),
        EngineEntry("pycaffe", "the real Caffe, in another interpreter", (), "set BRIDGE_PYCAFFE_PYTHON", probed=True),
        EngineEntry("numpy", "NumPy, for layers that Chainer lacks, such as DetectionOutput", (), "", asked=True),
        EngineEntry("opencv", "OpenCV 4, on the Caffe files", ("cv2",), _OPENCV, probed=True, asked=True),
        EngineEntry(
            "opencv_onnx", "OpenCV, on the exported model", ("cv2",), "pip install opencv-python-headless", asked=True
        ),
    )
}
"""Name -> engine, the first ones preferred."""


def missing(name: str, **options: Any) -> MissingExtraError | None:
    """Why an engine does not work here, or ``None`` if it does.

    Raises:
        UsageError: There is no engine of that name.
    """
    entry = find(name)
    for need in entry.needs:
        if importlib.util.find_spec(need) is None:
            return MissingExtraError(f"engine '{name}': {need} is not installed", hint=entry.hint)
    if entry.probed:
        problem: MissingExtraError | None = importlib.import_module(entry.module).missing(options.get("python"))
        return problem
    return None


def available(options: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
    """Names of the engines that work here and need not be asked for.

    Args:
        options: Each engine's options, by its name.
    """
    given = options or {}
    return [name for name, entry in ENGINES.items() if not entry.asked and missing(name, **given.get(name, {})) is None]


def find(name: str) -> EngineEntry:
    """The engine of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in ENGINES:
        raise UsageError(f"no engine '{name}'", hint=f"engines: {', '.join(ENGINES)}")
    return ENGINES[name]


def make(name: str, net: Net, **options: Any) -> Engine:
    """An engine for a net, or for what is served of it.

    Raises:
        UsageError: There is no engine of that name.
        MissingExtraError: It does not work here.
        UnsupportedLayerError: It cannot run the net.
    """
    problem = missing(name, **options)
    if problem is not None:
        raise problem
    engine: Engine = importlib.import_module(find(name).module).Engine(inference_net(net), **options)
    return engine


def make_partial(name: str, net: Net, **options: Any) -> Engine:
    """As :func:`make`; where the engine lacks layers of the net, a :class:`bridge.engines.pieces.PartialEngine`.

    Raises:
        UsageError: There is no engine of that name.
        MissingExtraError: It does not work here.
        UnsupportedLayerError: It cannot run any layer of the net.
    """
    from bridge.engines.pieces import PartialEngine

    problem = missing(name, **options)
    if problem is not None:
        raise problem
    module, served = importlib.import_module(find(name).module), inference_net(net)
    lacking = module.Engine.lacking(served, **options)
    partial = PartialEngine(lambda part: make(name, part, **options), served, lacking)
    return partial if lacking and partial.computes else make(name, served, **options)


def where_to_get_another(name: str) -> str:
    """As :func:`how_to_get_another`, in words that may be broken over several lines: commands to copy may not."""
    for entry in ENGINES.values():
        if entry.name != name and missing(entry.name) is not None:
            return f"'bridge doctor' prints the command that installs {entry.name}"
    return how_to_get_another(name)


def how_to_get_another(name: str) -> str:
    """A hint for a user who has one engine, or none: how to install the next, or what to use in its place.

    Args:
        name: The engine that works; empty for none.
    """
    for entry in ENGINES.values():
        if entry.name != name and missing(entry.name) is not None:
            return f"for {entry.name}: {entry.hint}"
    return "give recorded outputs with --recorded"
