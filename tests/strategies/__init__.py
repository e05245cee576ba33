"""The only home of the tests' Hypothesis strategies, a module for each family of layers.

A layer type's strategy draws a :class:`bridge.testing.LayerCase`: a layer as it stands in a
prototxt, and the shapes of its inputs. ``@layer_case("Type")`` registers it; a test demands
a strategy of every type.
"""

from bridge.testing import CASES
from tests.strategies import (
    activations,
    arithmetic,
    convolutions,
    data,
    detection,
    forks,
    normalisations,
    pieces,
    poolings,
    recurrent,
    shapes,
)

__all__ = [
    "CASES",
    "activations",
    "arithmetic",
    "convolutions",
    "data",
    "detection",
    "forks",
    "normalisations",
    "pieces",
    "poolings",
    "recurrent",
    "shapes",
]
