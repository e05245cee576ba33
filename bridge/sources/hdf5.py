"""HDF5Data and HDF5Output: blobs from and to HDF5 files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from bridge.errors import FormatError, OutputError, UsageError
from bridge.layers.base import CaffeLayer
from bridge.layers.hdf5_data import HDF5Data
from bridge.layers.hdf5_output import HDF5Output
from bridge.limits.hdf5 import Guard, import_h5py, open_hdf5
from bridge.schema import Shape, times
from bridge.sources import BatchSource, Sink, Surroundings
from bridge.sources.image_list import read_lines
from bridge.sources.randoms import C_RANDOM


class HDF5Source(BatchSource):
    """The rows of a list's files, over and over; each top is the data set of its name.

    Source: hdf5_data_layer.cpp.
    """

    def setup(self, layer: CaffeLayer, phase: str, around: Surroundings | None = None) -> None:
        """See :meth:`bridge.sources.BatchSource.setup`."""
        around = around or Surroundings()
        self.layer = cast(HDF5Data, layer)
        if self.layer.batch_size < 1:
            raise self.layer.fail("parameter 'batch_size'", found=f"{self.layer.batch_size}", expected="at least 1")
        if "transform_param" in layer.definition:
            raise self.layer.fail("has a transform_param, which it does not apply")
        listed = around.resolve(self.layer.source)
        self._files = [around.resolve(name) for line in read_lines(listed) for name in line.split()]
        if not self._files:
            raise FormatError("lists no files", where=str(listed))
        if self.layer.shuffle:
            C_RANDOM.shuffle(self._files)
        self._file = -1
        self._following_file()

    def _following_file(self) -> None:
        self._file += 1
        if self._file == len(self._files):
            self._file = 0
            if self.layer.shuffle:
                C_RANDOM.shuffle(self._files)
        self._load(self._files[self._file])

    def _load(self, path: Path) -> None:
        with open_hdf5(path) as (file, guard):
            self._arrays = [self._read(file, guard, top) for top in self.layer.tops]
        rows = {len(array) for array in self._arrays}
        if len(rows) != 1 or 0 in rows:
            extents = ", ".join(times(array.shape) for array in self._arrays)
            raise FormatError(f"data sets are {extents}", expected="as many rows in each", where=str(path))
        self._order = list(range(rows.pop()))
        if self.layer.shuffle:
            C_RANDOM.shuffle(self._order)
        self._row = 0

    @staticmethod
    def _read(file: Any, guard: Guard, name: str) -> np.ndarray:
        if name not in file:
            raise FormatError(f"has no data set '{name}'", where=guard.where, hint=f"it has {', '.join(file)}")
        array = guard.numbers("", file, name)
        if array.ndim < 1:
            raise FormatError(f"data set '{name}' is a single number", expected="numbers in rows", where=guard.where)
        return array.astype(np.float32, copy=False)

    def shapes(self) -> Sequence[Shape]:
        """See :meth:`bridge.sources.BatchSource.shapes`."""
        return [(self.layer.batch_size, *array.shape[1:]) for array in self._arrays]

    def next_batch(self) -> Sequence[np.ndarray]:
        """See :meth:`bridge.sources.BatchSource.next_batch`."""
        batch = self.new_batch()
        for place in range(self.layer.batch_size):
            for name, top, array in zip(self.layer.tops, batch, self._arrays, strict=True):
                if array.shape[1:] != top.shape[1:]:
                    problem, expected = f"data set '{name}' has rows of {times(array.shape[1:])}", times(top.shape[1:])
                    raise FormatError(problem, expected=expected, where=str(self._files[self._file]))
                top[place] = array[self._order[self._row]]
            self._advance()
        return batch

    def _advance(self) -> None:
        self._row += 1
        if self._row < len(self._order):
            return
        if len(self._files) > 1:
            self._following_file()
        self._row = 0
        if self.layer.shuffle:
            C_RANDOM.shuffle(self._order)


class HDF5Sink(Sink):
    """Writes the first bottom as ``data`` and the second as ``label``. Source: hdf5_output_layer.cpp."""

    def setup(self, layer: CaffeLayer, phase: str, around: Surroundings | None = None) -> None:
        """See :meth:`bridge.sources.Sink.setup`. An old file of that name is emptied, as in Caffe."""
        around = around or Surroundings()
        self.layer = cast(HDF5Output, layer)
        if not self.layer.file_name:
            raise self.layer.fail("parameter 'file_name' is missing")
        self._path = around.resolve(self.layer.file_name)
        self._written = False
        self._save({})

    def write(self, bottoms: Sequence[np.ndarray]) -> None:
        """See :meth:`bridge.sources.Sink.write`.

        Raises:
            UsageError: The file is written already; Caffe writes it once.
            OutputError: It cannot be written.
        """
        data, label = bottoms
        if len(data) != len(label):
            raise self.layer.fail(f"data has {len(data)} samples, label has {len(label)}")
        if self._written:
            raise UsageError(f"{self._path} is written already", where=self.layer.label, hint="one forward pass a net")
        self._save({"data": data, "label": label})
        self._written = True

    def _save(self, arrays: dict[str, np.ndarray]) -> None:
        h5py = import_h5py(str(self._path))
        try:
            with h5py.File(self._path, "w") as file:
                for name, array in arrays.items():
                    file.create_dataset(name, data=array.reshape(*array.shape, *(1,) * (4 - array.ndim)))
        except OSError as error:
            raise OutputError(f"cannot be written: {error}", where=str(self._path)) from None
