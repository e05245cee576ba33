"""A layer and its inputs, as the layer contract tests them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.layers import CaffeLayer, build_layer
from bridge.schema import Blob, Net, RawLayer, RawNet, Shape
from bridge.schema.message import Message

CaseFill = Callable[[np.random.Generator, Shape], Any]
"""Makes the values of an input or a blob from a random generator and a shape."""

CASES: dict[str, Any] = {}
"""Layer type -> Hypothesis strategy of :class:`LayerCase`, as :func:`layer_case` registers them."""


@dataclass(frozen=True)
class LayerCase:
    """One layer, the shapes of its inputs, and how its values are made.

    Example: ``LayerCase("GroupNorm", "group_norm_param { group_num: 3 }", ((2, 6, 3, 4),))`` is a
    layer of 3 groups with one input of 2 images, 6 channels, 3 rows and 4 columns.

    Attributes:
        type: Caffe's type string.
        body: The fields of the layer besides name, type, bottom and top, as prototxt text.
        shapes: The shape of each bottom.
        tops: The number of tops.
        data: Fillers of inputs by the bottom's index; an input without one is standard normal.
        blobs: Fillers of blobs by role; a blob without one is standard normal.
        seed: Seed of the random numbers of inputs and blobs.
    """

    type: str
    body: str
    shapes: tuple[Shape, ...]
    tops: int = 1
    data: Mapping[int, CaseFill] = field(default_factory=dict)
    blobs: Mapping[str, CaseFill] = field(default_factory=dict)
    seed: int = 0

    @property
    def prototxt(self) -> str:
        """The whole net as text: an Input for each bottom, then the layer."""
        lines = [
            f'layer {{ name: "in{i}" type: "Input" top: "in{i}" input_param {{ shape {{ '
            + " ".join(f"dim: {n}" for n in shape)
            + " } } }\n"
            for i, shape in enumerate(self.shapes)
        ]
        wiring = [f'bottom: "in{i}"' for i in range(len(self.shapes))] + [f'top: "out{i}"' for i in range(self.tops)]
        return "".join(lines) + f'layer {{ name: "l" type: "{self.type}" {" ".join(wiring)} {self.body} }}\n'

    @property
    def definition(self) -> Message:
        """The layer's own definition."""
        return prototxt.parse(self.prototxt).messages("layer")[-1]

    def net(self) -> Net:
        """The net with its blobs, whose shapes are those that the layer demands."""
        layer = build_layer(self.definition)
        rng = np.random.default_rng(self.seed)
        wanted = layer.blob_shapes(*self.shapes) if isinstance(layer, CaffeLayer) else {}
        blobs = tuple(Blob.of(_filled(self.blobs.get(role), rng, shape)) for role, shape in wanted.items())
        raw = RawLayer("l", self.type, layer.definition, blobs)
        return assemble(RawNet("case", (raw,), reader="strategy", source="case"), prototxt.parse(self.prototxt))

    def inputs(self) -> dict[str, np.ndarray]:
        """float32 values of each input, in the shapes of ``shapes``."""
        rng = np.random.default_rng(self.seed + 1)
        return {f"in{i}": _filled(self.data.get(i), rng, shape) for i, shape in enumerate(self.shapes)}


def _filled(fill: CaseFill | None, rng: np.random.Generator, shape: Shape) -> np.ndarray:
    values = fill(rng, shape) if fill else rng.standard_normal(shape)
    return np.asarray(values, np.float32).reshape(shape)


def layer_case(*types: str) -> Callable[[Any], Any]:
    """Register the strategy of one or several layer types.

    The decorated function is a ``@hypothesis.strategies.composite`` that takes the type's name
    and draws a :class:`LayerCase`. It is found under that name in :data:`CASES`.
    """

    def decorate(function: Any) -> Any:
        for name in types:
            CASES[name] = function(name)
        return function

    return decorate
