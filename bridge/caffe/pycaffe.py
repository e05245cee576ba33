"""What pycaffe adds to a net: access by name, and passes that take and give arrays.

Source: pycaffe.py.
"""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.caffe import weights
from bridge.caffe.blob import Blob, BlobVec
from bridge.errors import NotFoundError, UsageError, nearest
from bridge.schema import times

if TYPE_CHECKING:
    from bridge.caffe.layer import Layer, Node
    from bridge.caffe.net import Net

Arrays = dict[str, np.ndarray]


class PyNet:
    """Base of :class:`bridge.caffe.Net`: all that is not the computation itself."""

    layers: list[Layer]
    nodes: list[Node]
    where: str
    _blobs: list[Blob]

    if TYPE_CHECKING:

        @property
        def _blob_names(self) -> list[str]: ...
        @property
        def _layer_names(self) -> list[str]: ...
        @property
        def _inputs(self) -> list[int]: ...
        @property
        def _outputs(self) -> list[int]: ...
        @property
        def _blob_loss_weights(self) -> list[float]: ...
        def _top_ids(self, index: int) -> list[int]: ...
        def _bottom_ids(self, index: int) -> list[int]: ...
        def _forward(self, start: int, end: int) -> float: ...
        def _backward(self, start: int, end: int) -> None: ...

    # -- by name -----------------------------------------------------------------------------------

    @functools.cached_property
    def blobs(self) -> OrderedDict[str, Blob]:
        """The blobs by name, from input to output."""
        return OrderedDict(zip(self._blob_names, self._blobs, strict=True))

    @functools.cached_property
    def blob_loss_weights(self) -> OrderedDict[str, float]:
        """The factor of each blob in the loss, by name."""
        return OrderedDict(zip(self._blob_names, self._blob_loss_weights, strict=True))

    @functools.cached_property
    def layer_dict(self) -> OrderedDict[str, Layer]:
        """The layers by name."""
        return OrderedDict(zip(self._layer_names, self.layers, strict=True))

    @functools.cached_property
    def params(self) -> OrderedDict[str, BlobVec]:
        """The parameters of each layer that has some, by the layer's name."""
        named = zip(self._layer_names, self.layers, strict=True)
        return OrderedDict((name, layer.blobs) for name, layer in named if len(layer.blobs) > 0)

    @functools.cached_property
    def inputs(self) -> list[str]:
        """The names of the input blobs."""
        return [self._blob_names[number] for number in self._inputs]

    @functools.cached_property
    def outputs(self) -> list[str]:
        """The names of the output blobs, in alphabetical order."""
        return [self._blob_names[number] for number in self._outputs]

    @functools.cached_property
    def top_names(self) -> OrderedDict[str, list[str]]:
        """The names of each layer's tops, by the layer's name."""
        return self._names(self._top_ids)

    @functools.cached_property
    def bottom_names(self) -> OrderedDict[str, list[str]]:
        """The names of each layer's bottoms, by the layer's name."""
        return self._names(self._bottom_ids)

    def _names(self, ids: Any) -> OrderedDict[str, list[str]]:
        names = self._blob_names
        layers = enumerate(self._layer_names)
        return OrderedDict((layer, [names[number] for number in ids(index)]) for index, layer in layers)

    # -- the passes --------------------------------------------------------------------------------

    def forward(
        self, blobs: Sequence[str] | None = None, start: str | None = None, end: str | None = None, **inputs: Any
    ) -> Arrays:
        """Compute the net, or the layers from ``start`` to ``end``.

        Args:
            blobs: Names of blobs to return besides the outputs.
            start: The layer to begin with.
            end: The layer to end with; its tops are the outputs then.
            inputs: An array for each input blob, of the blob's shape; what is in the blobs counts without them.

        Returns:
            The blobs' data by name: float32, the blobs' own memory.

        Raises:
            UsageError: The inputs are not the net's, or do not have their shapes.
            NotFoundError: There is no such layer or blob.
            ModelError: The shapes of blobs and parameters do not fit together.
        """
        first = 0 if start is None else self._layer_index(start)
        last = len(self.layers) - 1 if end is None else self._layer_index(end)
        wanted = {*(self.outputs if end is None else self.top_names[end]), *(blobs or ())}
        self._known(wanted)
        self._fill("Input blob arguments do not match net inputs", self.inputs, inputs, "data")
        self._forward(first, last)
        return {name: self.blobs[name].data for name in wanted}

    def backward(
        self, diffs: Sequence[str] | None = None, start: str | None = None, end: str | None = None, **tops: Any
    ) -> Arrays:
        """Go back through the net, or from the layer ``start`` to the earlier layer ``end``.

        Args:
            diffs: Names of blobs whose diff to return besides the inputs'.
            start: The layer to begin with.
            end: The layer to end with; it is the diffs of its bottoms that are returned then.
            tops: An array for the diff of each output blob; what is in the blobs counts without them.

        Returns:
            The blobs' diff by name: float32, the blobs' own memory.

        Raises:
            UsageError: ``tops`` are not the net's outputs, or do not have their shapes.
            NotFoundError: There is no such layer or blob.
            MissingExtraError: Chainer is not installed.
        """
        first = len(self.layers) - 1 if start is None else self._layer_index(start)
        last = 0 if end is None else self._layer_index(end)
        wanted = {*(self.inputs if end is None else self.bottom_names[end]), *(diffs or ())}
        self._known(wanted)
        self._fill("Top diff arguments do not match net outputs", self.outputs, tops, "diff")
        self._backward(first, last)
        return {name: self.blobs[name].diff for name in wanted}

    def _layer_index(self, name: str) -> int:
        names = self._layer_names
        if name not in names:
            raise NotFoundError(f"no layer '{name}'", where=self.where, hint=nearest(name, names))
        return names.index(name)

    def _known(self, names: set[str]) -> None:
        for name in names:
            if name not in self.blobs:
                raise NotFoundError(f"no blob '{name}'", where=self.where, hint=nearest(name, self.blobs))

    def _fill(self, problem: str, names: Sequence[str], given: Mapping[str, Any], field: str) -> None:
        """Put arrays into blobs, once all of them are known to fit."""
        if not given:
            return
        if set(given) != set(names):
            raise UsageError(f"{problem}: got {', '.join(sorted(given))}; expected {', '.join(names) or 'none'}")
        arrays = {name: np.asarray(value) for name, value in given.items()}
        for name, array in arrays.items():
            shape = self.blobs[name].dims
            if array.shape[:1] != shape[:1]:
                what = "Input is not batch sized" if field == "data" else "Diff is not batch sized"
                room = f"net.blobs['{name}'].reshape({', '.join(map(str, array.shape))}) makes room for it"
                hint = room if array.shape else "give an array"
                raise UsageError(f"{what}: '{name}' got {times(array.shape)}", expected=f"{times(shape)}", hint=hint)
            _check_fits(name, array, shape)
        for name, array in arrays.items():
            getattr(self.blobs[name], field)[...] = array

    def forward_all(self, blobs: Sequence[str] | None = None, **inputs: Any) -> Arrays:
        """Compute the net for any number of samples, a batch at a time.

        Args:
            blobs: Names of blobs to return besides the outputs.
            inputs: An array for each input blob, of the blob's shape but for the first axis.

        Returns:
            The blobs' data by name, for all samples.
        """
        made: dict[str, list[np.ndarray]] = {name: [] for name in {*self.outputs, *(blobs or ())}}
        for batch in self._batch(inputs):
            for name, values in self.forward(blobs=blobs, **batch).items():
                made[name].extend(values.copy())
        return _packed(made, _samples(inputs))

    def forward_backward_all(
        self, blobs: Sequence[str] | None = None, diffs: Sequence[str] | None = None, **arrays: Any
    ) -> tuple[Arrays, Arrays]:
        """Compute the net and go back through it for any number of samples, a batch at a time.

        Args:
            blobs: Names of blobs to return besides the outputs.
            diffs: Names of blobs whose diff to return besides the inputs'.
            arrays: An array for each input blob, and for the diff of each output blob.

        Returns:
            The blobs' data and the blobs' diff by name, for all samples.
        """
        made: dict[str, list[np.ndarray]] = {name: [] for name in {*self.outputs, *(blobs or ())}}
        back: dict[str, list[np.ndarray]] = {name: [] for name in {*self.inputs, *(diffs or ())}}
        nothing: dict[str, Any] = {}
        forwards = self._batch({name: arrays[name] for name in self.inputs if name in arrays})
        backwards = self._batch({name: arrays[name] for name in self.outputs if name in arrays})
        for inputs, tops in zip_longest(forwards, backwards, fillvalue=nothing):
            for name, values in self.forward(blobs=blobs, **inputs).items():
                made[name].extend(values.copy())
            for name, values in self.backward(diffs=diffs, **tops).items():
                back[name].extend(values.copy())
        samples = _samples(arrays)
        return _packed(made, samples), _packed(back, samples)

    def _batch(self, arrays: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The arrays in pieces of the net's batch size; the last one is filled up with zeros."""
        if not arrays:
            return
        size = next(iter(self.blobs.values())).dims[0]
        samples = _samples(arrays)
        for start in range(0, samples, size):
            batch = {name: np.asarray(values[start : start + size]) for name, values in arrays.items()}
            missing = size - min(size, samples - start)
            yield {
                name: np.concatenate([values, np.zeros((missing, *values.shape[1:]))]) if missing else values
                for name, values in batch.items()
            }

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Give a net whose first layer is MemoryData the samples that it goes through.

        Args:
            data: float32 (samples, channels, height, width), C-contiguous; the net keeps it.
            labels: float32 (samples), or with three more axes of extent one.

        Raises:
            UsageError: The first layer is no MemoryData, or the arrays do not fit it.
        """
        if labels.ndim == 1:
            labels = np.ascontiguousarray(labels[:, np.newaxis, np.newaxis, np.newaxis])
        source: Any = getattr(self.nodes[0], "source", None)
        if not hasattr(source, "reset"):
            raise UsageError(
                "set_input_arrays may only be called if the first layer is a MemoryDataLayer", where=self.where
            )
        source.reset(data, labels)

    # -- the parameters' files ---------------------------------------------------------------------

    def copy_from(self: Net, file: Any) -> None:  # type: ignore[misc]
        """Copy parameters from a file, by the layers' names.

        Args:
            file: ``.caffemodel``, ``.caffemodel.h5``, or what ``bridge convert`` writes; several names
                stand in one text with commas between them.

        Raises:
            MissingFileError: It does not exist.
            FormatError: It holds no weights, or is damaged.
            ModelError: A layer's parameters do not fit; names the layer. Nothing was copied then.
        """
        for name in os.fsdecode(file).split(","):
            weights.copy_from(self, Path(name))

    def share_with(self: Net, other: Net) -> None:  # type: ignore[misc]
        """Have the parameters of another net's layers of the same names from now on.

        Raises:
            ModelError: A layer's parameters do not fit; names the layer.
        """
        if not isinstance(other, PyNet):
            raise UsageError(f"share_with({other!r})", expected="another caffe.Net", where=self.where)
        weights.share_with(self, other)

    def save(self: Net, file: Any) -> None:  # type: ignore[misc]
        """Write ``.caffemodel``.

        Raises:
            OutputError: The file cannot be written.
        """
        weights.save(self, file, "caffemodel")

    def save_hdf5(self: Net, file: Any) -> None:  # type: ignore[misc]
        """Write ``.caffemodel.h5``.

        Raises:
            OutputError: The file cannot be written.
            MissingExtraError: h5py is not installed.
        """
        weights.save(self, file, "hdf5")

    def load_hdf5(self, file: Any) -> None:
        """Copy parameters from ``.caffemodel.h5``; see :meth:`copy_from`."""
        self.copy_from(file)  # type: ignore[misc]


def _check_fits(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    try:
        np.broadcast_to(np.empty((), np.int8), shape)
        fits = np.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise UsageError(f"'{name}' got {times(array.shape)}", expected=f"{times(shape)}")


def _samples(arrays: Mapping[str, Any]) -> int:
    return len(next(iter(arrays.values()))) if arrays else 0


def _packed(made: Mapping[str, list[np.ndarray]], samples: int) -> Arrays:
    """The values of all batches as one array each, without what the last batch was filled up with."""
    return {name: np.asarray(values)[: samples or None] for name, values in made.items()}
