"""Layers that write blobs to files: HDF5Output and its like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge.layers.base import MANY, MovingLayer, layer_type
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


@layer_type("MatWrite", "FLOWriter", "ImgWriter", "Writer")
class FileWriter(MovingLayer):
    """Writes blobs to files of a fork's own kinds. Nothing is written here: what it reads becomes the net's output.

    Source: mat_write_layer.cpp of DeepLab; flo_writer_layer.cpp, img_writer_layer.cpp of FlowNet2.
    """

    message = "mat_write_param"
    aliases = ("writer_param",)
    harmless = dict.fromkeys(
        ("prefix", "source", "strip", "period", "file", "folder", "suffix", "normalize", "scale"),
        "says where and how a file is written",
    )
    training_only = True
    bottom_count = (1, MANY)
    top_count = (0, 0)

    def reason(self) -> str:
        return "writing a file has no part in inference"

    def infer(self, *bottoms: Shape) -> tuple[Shape, ...]:
        return ()

    def to_chainer(self, F: ChainerFunctions, link: LayerArrays, *x: Any) -> Any:
        return ()
