"""What a reader delivers: layers and blobs as a file holds them, in Caffe's order, nothing interpreted."""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge.schema.blob import Blob
from bridge.schema.message import Message


@dataclass(frozen=True)
class RawLayer:
    """A layer as a file holds it, after the upgrade to Caffe's current (V2) form.

    Attributes:
        name: The layer's name.
        type: Caffe's type string, such as ``Convolution``.
        definition: The layer's ``LayerParameter`` without its blobs.
        blobs: The stored arrays, in Caffe's order.
        uncovered: Why the reader could not deliver this layer's blobs; empty if it did.
        reworked: Why the blobs are not the source's own, though the layer computes the same; empty if they are.
    """

    name: str
    type: str
    definition: Message
    blobs: tuple[Blob, ...] = ()
    uncovered: str = ""
    reworked: str = ""


@dataclass(frozen=True)
class RawNet:
    """What a reader delivers.

    Attributes:
        name: The net's name.
        layers: In the order of the file.
        definition: Fields of the net itself (``name``, ``state``, ...), without layers.
        source: The file.
        reader: Name of the reader.
        notes: Remarks for the user, one line each.
        complete: Whether ``layers`` hold whole definitions (type, wiring, parameters),
            or only names and blobs.
        partial: Whether layers of the file that the net has not are left out.
    """

    name: str
    layers: tuple[RawLayer, ...]
    definition: Message = field(default_factory=Message)
    source: str = ""
    reader: str = ""
    notes: tuple[str, ...] = ()
    complete: bool = True
    partial: bool = False
