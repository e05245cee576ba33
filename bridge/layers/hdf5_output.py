"""HDF5Output: blobs to an HDF5 file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MovingLayer, layer_type
from bridge.schema import Shape

if TYPE_CHECKING:
    from bridge.layers.builders import ChainerFunctions, LayerArrays


@layer_type("HDF5Output")
class HDF5Output(MovingLayer):
    """Writes data and labels to a file. Nothing is written here: the layer is known, and does nothing.

    Attributes:
        file_name: The file.

    Source: caffe.proto ``HDF5OutputParameter``, hdf5_output_layer.cpp.
    """

    message = "hdf5_output_param"
    training_only = True
    bottom_count = (2, 2)
    top_count = (0, 0)

    file_name: str = ""

    def reason(self) -> str:
        return "writing a file has no part in inference"

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return ()

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return ()
