"""What a run is given in memory, in place of files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bridge.finetuning.data import Data, Loading, load_data, shaped
from bridge.schema import Net

GivenData = Data | tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class Material:
    """A net and data that are in memory; ``None`` is what the settings name.

    Attributes:
        net: The net.
        data: Training data.
        validation: Validation data.
    """

    net: Net | None = None
    data: GivenData = None
    validation: GivenData = None


def loaded_data(given: GivenData, source: str, loading: Loading, classes: tuple[str, ...] = ()) -> Data:
    """The data that are given, or else those of the source.

    Raises:
        BridgeError: They cannot be read, or do not fit the net.
    """
    if given is None:
        return load_data(source, loading, classes)
    if isinstance(given, Data):
        return given
    x, y = map(np.asarray, given)
    return shaped(x, y, loading.shape, source)
