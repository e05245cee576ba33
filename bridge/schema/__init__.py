"""The schema: one framework-neutral net of typed layers with named blobs.

Readers produce a :class:`RawNet` (what a file holds, in Caffe's order, nothing
interpreted); :func:`bridge.caffe_files.assemble.assemble` turns it into a :class:`Net`;
everything else only consumes the :class:`Net`. No module here knows a file format
or a framework.
"""

from __future__ import annotations

from bridge.schema.blob import Blob, Blobs, Location, Shape, count, times
from bridge.schema.layer import Layer, Opaque, ParamSpec
from bridge.schema.net import Net, ServedNet, as_served
from bridge.schema.raw import RawLayer, RawNet

__all__ = [
    "Blob", "Blobs", "Layer", "Location", "Net", "Opaque", "ParamSpec", "RawLayer", "RawNet", "ServedNet", "Shape",
    "as_served", "count", "times",
]  # fmt: skip
