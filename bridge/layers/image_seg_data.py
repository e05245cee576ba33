"""Data layers of segmentation: images with a picture of labels each."""

from __future__ import annotations

from bridge.layers.base import layer_type
from bridge.layers.data_source import DataSource
from bridge.layers.image_data import ImageData
from bridge.schema.hooks import PartialShape


@layer_type("ImageSegData")
class ImageSegData(ImageData):
    """DeepLab's batches of images, labels and extents of the images, from a list of files.

    Attributes:
        source: The list.
        batch_size: Images per batch.
        new_height, new_width: PartialShape that images are resized to, both or neither.
        is_color: Three channels, or one.

    Source: caffe.proto ``ImageDataParameter``, image_seg_data_layer.cpp of DeepLab.
    """

    top_count = (1, 3)


@layer_type("DenseImageData")
class DenseImageData(DataSource):
    """SegNet's batches of images and labels, from a list of files.

    Attributes:
        source: The list.
        batch_size: Images per batch.
        new_height, new_width: PartialShape that images are resized to, both or neither.
        crop_height, crop_width: PartialShape of the part that is cut out.
        is_color: Three channels, or one.

    Source: caffe.proto ``DenseImageDataParameter``, dense_image_data_layer.cpp of caffe-segnet.
    """

    message = "dense_image_data_param"

    source: str = ""
    batch_size: int = 1
    new_height: int = 0
    new_width: int = 0
    crop_height: int = 0
    crop_width: int = 0
    is_color: bool = True

    def batch(self) -> PartialShape | None:
        space = (self.crop_height or self.new_height, self.crop_width or self.new_width)
        return (self.batch_size, 3 if self.is_color else 1, *space) if all((self.batch_size, *space)) else None
