"""Chainer's ``CaffeFunction``: the same calls, with every layer type and Caffe's numbers.

A script that was written for ``chainer.links.caffe.CaffeFunction`` changes one import::

    from bridge.chain import CaffeFunction

    func = CaffeFunction("bvlc_reference_caffenet.caffemodel")
    (y,) = func(inputs={"data": x}, outputs=["fc8"])

With ``bridge.compat.install(caffe_function=True)`` it changes nothing: Chainer's own name
then stands for this class.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from bridge.chain.function_links import Call, LinkArrays, link_of
from bridge.chain.functions import F, chainer
from bridge.chain.stored import StoredArrays
from bridge.errors import NotFoundError, UsageError, nearest
from bridge.files.load import load
from bridge.layers import CaffeLayer
from bridge.layers.split import Split
from bridge.schema import Blobs, Layer, Net

Entry = tuple[str, list[str], list[str]]


class CaffeFunction(chainer.Chain):
    """A Caffe model as one function of its blobs, with a child link per layer that has weights.

    The children are Chainer's own links where Chainer has one for the layer: ``Convolution2D``,
    ``Deconvolution2D`` (with ``groups``), ``Linear``, ``BatchNormalization`` and ``Scale``. They
    are called what the layer is called: ``func.conv1.W``, ``func["inception_3a/1x1"].W``. LinkArrays
    are views into the file, which is read as they are used; writing them leaves the file alone.

    As Chainer's, it follows ``chainer.config.train``: dropout drops and BatchNorm takes the
    batch's statistics where it is True, which is Chainer's default.

    Args:
        model_path: A caffemodel, or any other file of weights that :func:`bridge.load` reads.
        prototxt: The net's definition; a caffemodel holds its own.

    Attributes:
        forwards: Layer name -> the function of its bottoms.
        layers: ``(name, bottoms, tops)`` of each layer, in order of execution.
        split_map: Top of a Split layer -> its bottom.
        variables: All blobs of the last call by name.
        skipped: Layer name -> why it cannot be computed. A warning names each.

    Raises:
        MissingFileError: There is no such file.
        FormatError: It is not what it seems, or damaged.
        UsageError: It holds weights alone, and no prototxt is given.

    Source: chainer/links/caffe/caffe_function.py of Chainer 7.8.1.
    """

    def __init__(self, model_path: str | Path, prototxt: str | Path | None = None) -> None:
        super().__init__()
        net = load(*(file for file in (prototxt, model_path) if file is not None))
        if net.layers and all(not layer.definition.text("type") for layer in net.layers):
            raise UsageError("holds weights and no net", where=str(model_path), hint="give prototxt=, the definition")
        self.forwards: dict[str, Callable[..., Any]] = {}
        self.split_map: dict[str, str] = {}
        self.layers: list[Entry] = []
        self.variables: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}
        self._children_of: dict[str, str] = {}
        for note in net.notes:
            warnings.warn(f"{model_path}: {note}", stacklevel=2)
        self._build(net, model_path)

    def _build(self, net: Net, model_path: str | Path) -> None:
        stored = StoredArrays()
        renamed = _unchanged_splits(net.layers)
        for layer in net.layers:
            if layer.is_input:  # the caller gives what a data layer would read
                continue
            if isinstance(layer, Split) and all(top in renamed for top in layer.tops):
                self.split_map.update((top, self.split_map.get(top, layer.bottoms[0])) for top in layer.tops)
                continue
            name = _free(layer.name, self.forwards, self.skipped)
            if problem := _problem(layer):
                self.skipped[name] = problem
                message = f'Skip the layer "{name}", since CaffeFunction does not support it: {problem}'
                warnings.warn(f"{model_path}: {message}", stacklevel=4)
            else:
                self._add(name, cast(CaffeLayer, layer), stored)
            bottoms = [self.split_map.get(bottom, bottom) for bottom in layer.bottoms]
            self.layers.append((name, bottoms, list(layer.tops)))

    def _add(self, name: str, layer: CaffeLayer, stored: StoredArrays) -> None:
        """Make the layer's function, and its child if it has weights."""
        bare = dataclasses.replace(layer, blobs=Blobs())
        if not layer.blobs:
            self.forwards[name] = Plain(bare)
            return
        link, call = link_of(layer, bare, stored)
        child = f"{name}%" if hasattr(self, name) else name
        self.add_link(child, link)
        self._children_of[name] = child
        self.forwards[name] = OfChild(self, child, type(link), call)

    def __getitem__(self, name: str) -> Any:
        """The child of a layer.

        Raises:
            NotFoundError: No layer of that name has weights.
        """
        child = self._children_of.get(name, name)
        if child not in self._children:
            raise NotFoundError(f"no layer '{name}' with weights", hint=nearest(name, self._children_of))
        return getattr(self, child)

    def copy(self, mode: str = "share") -> Any:
        """A copy of the chain whose functions use the copied links; ``mode`` is that of ``Chain.copy``."""
        twin = super().copy(mode)
        twin.forwards = {
            name: dataclasses.replace(call, owner=twin) if isinstance(call, OfChild) else call
            for name, call in self.forwards.items()
        }
        return twin

    def forward(
        self,
        inputs: Mapping[str, Any],
        outputs: Iterable[str],
        disable: Collection[str] = (),
        train: bool | None = None,
    ) -> tuple[Any, ...]:
        """Compute blobs from other blobs.

        A layer runs if all of its bottoms are given or computed, and is passed over otherwise.

        Args:
            inputs: LinkArrays or variables by blob name, of any blobs of the net.
            outputs: Names of the blobs to return.
            disable: Names of layers that are not to run. The blob that such a layer changes in
                place keeps its value.
            train: Value of ``chainer.config.train`` for this call; by default it stays as it is.

        Returns:
            A variable for each name in ``outputs``.

        Raises:
            NotFoundError: A blob in ``outputs`` was neither given nor computed, or a layer in
                ``disable`` does not exist.
        """
        unknown = sorted(set(disable) - {name for name, _, _ in self.layers} - set(self.split_map.values()))
        if unknown:
            names = [name for name, _, _ in self.layers]
            raise NotFoundError(f"disable: no layer '{unknown[0]}'", hint=nearest(unknown[0], names))
        with chainer.using_config("train", chainer.config.train if train is None else bool(train)):
            self.variables = self._run({name: chainer.as_variable(x) for name, x in inputs.items()}, set(disable))
        return tuple(self._found(name) for name in outputs)

    def _run(self, variables: dict[str, Any], disable: set[str]) -> dict[str, Any]:
        given = set(variables)
        for name, bottoms, tops in self.layers:
            if name in disable or any(blob not in variables for blob in bottoms):
                continue
            if not bottoms and given.issuperset(tops):  # constants of the net, which the caller replaces
                continue
            if name not in self.forwards:
                for top in tops:  # changed in place by a layer that cannot run: its value is not known
                    variables.pop(top, None)
                continue
            values = self.forwards[name](*(variables[blob] for blob in bottoms))
            variables.update(zip(tops, values if isinstance(values, (tuple, list)) else (values,), strict=False))
        return variables

    def _found(self, name: str) -> Any:
        blob = name if name in self.variables else self.split_map.get(name, name)
        if blob in self.variables:
            return self.variables[blob]
        blamed = [f"layer '{layer}' was skipped ({why})" for layer, why in self.skipped.items()]
        known = {top for _, _, tops in self.layers for top in tops}
        hint = "; ".join(blamed) if blamed else "" if name in known else nearest(name, known)
        raise NotFoundError(f"blob '{name}' was neither given nor computed", hint=hint)


@dataclasses.dataclass(frozen=True)
class Plain:
    """The function of a layer without weights."""

    layer: CaffeLayer

    def __call__(self, *bottoms: Any) -> Any:
        """The tops."""
        arrays = LinkArrays(chainer.backend.get_array_module(*bottoms))
        return self.layer.to_chainer(F, arrays, *map(chainer.as_variable, bottoms))


@dataclasses.dataclass(frozen=True)
class OfChild:
    """The function of a layer with weights; a link that the user put in its place is called as it is.

    Attributes:
        owner: The chain.
        name: Name of the child.
        kind: Class of the link that was made for the layer.
        call: Computes the layer with such a link.
    """

    owner: Any
    name: str
    kind: type
    call: Call

    def __call__(self, *bottoms: Any) -> Any:
        """The tops."""
        link = getattr(self.owner, self.name)
        made = type(link) is self.kind and hasattr(link, "caffe_layer")
        return self.call(link, *map(chainer.as_variable, bottoms)) if made else link(*bottoms)


def _problem(layer: Layer) -> str:
    """Why a layer cannot be computed; empty if it can."""
    if layer.uncovered:
        return layer.uncovered
    if not layer.has_chainer:
        return layer.reason()
    if not layer.blobs and cast(CaffeLayer, layer).roles(0):
        return "the file has no weights for it"
    return ""


def _free(name: str, *taken: Collection[str]) -> str:
    """The layer's name, with a number behind it where an earlier layer has it."""
    number, wish = 1, name
    while any(wish in names for names in taken):
        number += 1
        wish = f"{name}%~{number}"
    return wish


def _unchanged_splits(layers: Iterable[Layer]) -> set[str]:
    """Tops of Split layers that are the bottom's value for all who read them.

    That is not so where the bottom, or the top itself, is written again behind the Split.
    """
    found: dict[str, str] = {}
    for layer in layers:
        for top in layer.tops:
            for split in [split for split, bottom in found.items() if top in (split, bottom)]:
                del found[split]
        if isinstance(layer, Split):
            found.update((top, layer.bottoms[0]) for top in layer.tops)
    return set(found)
