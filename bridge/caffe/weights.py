"""Parameters of a net to files and back, and from net to net."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from bridge.caffe.blob import Blob, param_blob
from bridge.caffe.layer import Node, TypedNode
from bridge.errors import ModelError
from bridge.files import readers, writers
from bridge.layers import CaffeLayer
from bridge.schema import Blob as Stored
from bridge.schema import Blobs, RawLayer, Shape, times
from bridge.schema import Layer as TypedLayer
from bridge.schema import Net as Definition

if TYPE_CHECKING:
    from bridge.caffe.net import Net


def copy_from(net: Net, path: Path) -> None:
    """Copy parameters from a file, by the layers' names; all of them or none.

    Args:
        net: The net.
        path: Any file of weights that ``bridge`` reads.

    Raises:
        ModelError: A layer's parameters do not fit.

    Source: ``Net::CopyTrainedLayersFrom``.
    """
    raw = readers.read(path)
    by_name: dict[str, Node] = {}
    for node in net.nodes:
        by_name.setdefault(node.name, node)
    stored_layers = [layer for layer in raw.layers if layer.name in by_name and (layer.blobs or layer.uncovered)]
    forms = {layer.name: _other_form(by_name[layer.name], layer, f"{path}: ") for layer in stored_layers}
    pairs = [
        pair
        for layer in stored_layers
        for pair in _pairs(by_name[layer.name], layer, forms[layer.name], raw.complete, f"{path}: ")
    ]
    for name, form in forms.items():
        if form is not None:
            form.adopt(by_name[name])
    for stored, blob in pairs:
        with np.errstate(over="ignore"):  # float64 of a file may be more than float32 can hold
            blob.data_memory.put(np.array(stored.numpy(), np.float32, order="C"))


class _Form(NamedTuple):
    """A layer as the number of its stored blobs has it: some types have one form or another by that number."""

    typed: CaffeLayer
    blobs: list[Blob]

    def adopt(self, node: Node) -> None:
        """Let the layer have this form from now on."""
        cast(TypedNode, node).become(self.typed, self.blobs)


def _other_form(node: Node, layer: RawLayer, where: str) -> _Form | None:
    """The form that a layer has by its stored blobs, if that is another one than by its definition."""
    number = len(layer.blobs)
    if not isinstance(node, TypedNode) or None in layer.blobs or number in (0, len(node.layer.blobs)):
        return None
    if len(node.typed.roles(number)) != number:
        return None
    typed = node.typed.with_blobs(layer.blobs)
    shapes = tuple(bottom.dims for bottom in node.bottoms)
    try:
        typed.checked_infer(*shapes)
    except ModelError as error:
        raise ModelError(str(error.args[0]), where=where.removesuffix(": ")) from None
    return _Form(typed, [param_blob(blob.shape) for _, blob in typed.blobs.entries()])


def _pairs(node: Node, layer: RawLayer, form: _Form | None, complete: bool, where: str) -> list[tuple[Stored, Blob]]:
    """Each stored blob with the one that gets its values."""
    if layer.uncovered and complete:
        raise ModelError(layer.uncovered, where=f"{where}{node.label}")
    own = node.layer.blobs if form is None else form.blobs
    held = [(stored, blob) for stored, blob in zip(layer.blobs, own, strict=False) if stored is not None]
    if len(layer.blobs) != len(own) and (complete or len(layer.blobs) > len(own)):
        raise ModelError(f"has {len(layer.blobs)} blobs", expected=f"{len(own)}", where=f"{where}{node.label}")
    for index, (stored, blob) in enumerate(held):
        if not _fits(stored.shape, blob.dims):
            raise ModelError(
                f"blob {index} is {times(stored.shape)}",
                expected=f"{times(blob.dims)}",
                where=f"{where}{node.label}",
                hint="rename the layer in the prototxt to start from new values",
            )
    return held


def _fits(stored: Shape, own: Shape) -> bool:
    """Whether the shapes are the same, but for leading axes of extent one. Source: ``Blob::ShapeEquals``."""
    if len(stored) == 4 and len(own) <= 4:  # as files of before 2015 have them
        return stored == (*[1] * (4 - len(own)), *own)
    return stored == own


def share_with(net: Net, other: Net) -> None:
    """Have the parameters of another net's layers of the same names. Source: ``Net::ShareTrainedLayersWith``."""
    by_name = {node.name: node for node in reversed(net.nodes)}
    pairs: list[tuple[Blob, Blob]] = []
    for source in other.nodes:
        node = by_name.get(source.name)
        if node is None:
            continue
        theirs, own = source.layer.blobs, node.layer.blobs
        if [blob.dims for blob in theirs] != [blob.dims for blob in own]:
            shapes = ", ".join(times(blob.dims) for blob in theirs) or "none"
            raise ModelError(f"has other parameters than those to share ({shapes})", where=f"{net.where}: {node.label}")
        pairs += zip(own, theirs, strict=True)
    for blob, theirs_ in pairs:
        blob.data_memory = theirs_.data_memory


def save(net: Net, file: Any, format: str) -> None:
    """Write the parameters.

    Args:
        net: The net.
        file: The file.
        format: A name of :data:`bridge.files.writers.FORMATS`.

    Source: ``Net::ToProto``, ``Net::ToHDF5``.
    """
    owners: dict[int, Stored] = {}
    layers = tuple(_stored_layer(node, owners) for node in net.nodes)
    definition = net._wiring.rest.copy()
    writers.save(Definition(net.name, layers, definition, net._phase, reader="memory"), file, format)


def _stored_layer(node: Node, owners: dict[int, Stored]) -> TypedLayer:
    blobs = {f"blob{index}": _stored(blob, owners) for index, blob in enumerate(node.layer.blobs)}
    return TypedLayer(
        name=node.name,
        type=node.definition.text("type"),
        definition=node.definition,
        blobs=Blobs(blobs),
    )


def _stored(blob: Blob, owners: dict[int, Stored]) -> Stored:
    made = Stored.of(blob.peek())
    made.origin = owners.setdefault(id(blob.data_memory), made)
    return made
