"""What data layers share: the batches they give, and what they do to images on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bridge.layers.base import CaffeLayer, Params
from bridge.schema import Shape
from bridge.schema.hooks import PartialShape


@dataclass(frozen=True)
class Transform:
    """What happens to each image: crop, mirror, subtract the mean, then multiply by ``scale``.

    Attributes:
        scale: Factor.
        mirror: Whether half of the images are mirrored in training.
        crop_size: Side of the square that is cut out, at random in training, from the centre otherwise; 0 for none.
        mean_file: A binaryproto with the mean image.
        mean_value: The mean, one value or one per channel.
        force_color, force_gray: Decode to three channels, or to one.

    Source: caffe.proto ``TransformationParameter``, data_transformer.cpp.
    """

    scale: float = 1.0
    mirror: bool = False
    crop_size: int = 0
    mean_file: str = ""
    mean_value: tuple[float, ...] = ()
    force_color: bool = False
    force_gray: bool = False

    @classmethod
    def read(cls, p: Params) -> Transform:
        """The transformation from a ``transform_param``."""
        transform = cls(
            scale=p.read("scale", float, 1.0),
            mirror=p.read("mirror", bool, False),
            crop_size=p.read("crop_size", int, 0),
            mean_file=p.read("mean_file", str, ""),
            mean_value=p.read("mean_value", tuple[float, ...], ()),
            force_color=p.read("force_color", bool, False),
            force_gray=p.read("force_gray", bool, False),
        )
        if transform.crop_size < 0:
            raise p.fail(f"parameter 'crop_size' is {transform.crop_size}", expected="at least 0")
        if transform.mean_file and transform.mean_value:
            raise p.fail("has both mean_file and mean_value", expected="one of them")
        return transform


@dataclass(frozen=True, eq=False, kw_only=True)
class DataSource(CaffeLayer):
    """A layer that reads training data: batches of samples, and a label for each where it has a second top.

    To a net that is fed from outside, its tops are inputs.

    Attributes:
        transform: What happens to each image.

    Source: base_data_layer.cpp.
    """

    training_only = True
    is_input = True
    reads_data = True
    bottom_count = (0, 0)
    top_count = (1, 2)

    transform: Transform = Transform()

    @classmethod
    def read(cls, p: Params) -> dict[str, Any]:
        own = {name: value for name, value in super().read(p).items() if name != "transform"}
        return {**own, "transform": Transform.read(p.other("transform_param"))}

    def batch(self) -> PartialShape | None:
        """The extents of the first top, as far as the parameters tell; ``None`` if they do not."""
        return None

    @property
    def picture_size(self) -> tuple[int, int] | None:
        """(height, width) that whole pictures are resized to before they are cropped; ``None`` keeps their size."""
        return None

    @property
    def extents(self) -> tuple[PartialShape | None, ...]:
        """What the parameters tell of each top's extents."""
        batch = self.batch()
        return (batch, *((batch[:1] if batch else None) for _ in self.tops[1:]))

    @property
    def input_shapes(self) -> tuple[Shape | None, ...]:
        """The shape of each top, where all of it is known."""
        return tuple(known(extents) for extents in self.extents)

    def reason(self) -> str:
        return "a data layer has no part in inference"


def known(extents: PartialShape | None) -> Shape | None:
    """The extents as a shape, if all of them are known."""
    shape = tuple(extent for extent in extents or () if extent is not None)
    return shape if extents and len(shape) == len(extents) else None


def square(batch_size: int, channels: int | None, side: int) -> PartialShape | None:
    """A batch of square images, unless the side is not known."""
    return (batch_size, channels, side, side) if batch_size and side else None
