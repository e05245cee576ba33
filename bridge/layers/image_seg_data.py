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
        shuffle: Whether the list is shuffled at each pass.
        rand_skip: At most so many images are skipped at the start.
        root_folder: Put in front of each path.
        mirror: Whether half of the images are mirrored, with their labels.

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
    shuffle: bool = False
    rand_skip: int = 0
    root_folder: str = ""
    mirror: bool = False

    @property
    def picture_size(self) -> tuple[int, int] | None:
        return (self.new_height, self.new_width) if self.new_height and self.new_width else None

    @property
    def extents(self) -> tuple[PartialShape | None, ...]:
        batch = self.batch()
        return (batch, *((batch[0], 1, *batch[2:]) if batch else None for _ in self.tops[1:]))

    def batch(self) -> PartialShape | None:
        space = (self.crop_height or self.new_height, self.crop_width or self.new_width)
        return (self.batch_size, 3 if self.is_color else 1, *space) if all((self.batch_size, *space)) else None
