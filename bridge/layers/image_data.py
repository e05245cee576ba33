"""ImageData: images from a list of files."""

from __future__ import annotations

from bridge.layers.base import layer_type
from bridge.layers.data_source import DataSource
from bridge.schema.hooks import PartialShape


@layer_type("ImageData")
class ImageData(DataSource):
    """Batches of images and labels, from a file with ``path label`` on each line.

    Attributes:
        source: The list.
        batch_size: Images per batch.
        shuffle: Whether the list is shuffled at each pass.
        new_height, new_width: Extents that images are resized to, both or neither.
        is_color: Three channels, or one.
        rand_skip: At most so many images are skipped at the start.
        root_folder: Put in front of each path.

    Source: caffe.proto ``ImageDataParameter``, image_data_layer.cpp.
    """

    message = "image_data_param"

    source: str = ""
    batch_size: int = 1
    shuffle: bool = False
    new_height: int = 0
    new_width: int = 0
    is_color: bool = True
    rand_skip: int = 0
    root_folder: str = ""

    @property
    def picture_size(self) -> tuple[int, int] | None:
        return (self.new_height, self.new_width) if self.new_height and self.new_width else None

    def batch(self) -> PartialShape | None:
        side = self.transform.crop_size
        space = (side, side) if side else (self.new_height, self.new_width)
        return (self.batch_size, 3 if self.is_color else 1, *space) if all((self.batch_size, *space)) else None
