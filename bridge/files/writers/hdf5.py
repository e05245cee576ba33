"""Caffe's HDF5 weights, which the real Caffe loads: ``/data/LAYER/INDEX``."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any

from bridge.errors import MissingExtraError, UnsupportedLayerError
from bridge.extras import pip
from bridge.schema import Layer, Net


def write(net: Net, stream: IO[bytes]) -> None:
    """Write ``.caffemodel.h5``.

    As Caffe does, every layer gets a group, and a shared parameter is stored at the first
    layer that has it. A slash in a layer's name makes nested groups; Caffe itself can
    neither write nor load HDF5 weights of such layers.

    Args:
        net: The net.
        stream: Where to; seekable, and open for reading too.

    Raises:
        MissingExtraError: h5py is not installed.
        UnsupportedLayerError: Layers have names that HDF5 cannot hold.

    Source: Caffe's ``Net::ToHDF5``.
    """
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py is not installed", hint=pip("hdf5")) from None
    shield = _Shield(getattr(stream, "raw", stream))  # a buffer would write where only positions are asked for
    try:
        with _interrupting(shield), h5py.File(shield, "w") as file:
            _store_net(file.create_group("data"), net)
    finally:
        if shield.error is not None:
            raise shield.error


class _Shield:
    """The stream as HDF5 sees it: none of its calls raises, and after one that failed nothing happens any more.

    HDF5 calls back from C. An exception there may come out as another one, much later, or crash the process.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def seek(self, *place: int) -> int:
        return self._try(self.stream.seek, *place)

    def readinto(self, buffer: Any) -> int:
        return self._try(self.stream.readinto, buffer)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = rest.nbytes
        while rest and self.error is None:
            rest = rest[self._try(self.stream.write, rest) :]
        return size

    def truncate(self, size: int) -> int:
        return self._try(self.stream.truncate, size)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, call: Callable[..., Any], *arguments: Any) -> int:
        if self.error is not None:
            return 0
        try:
            return int(call(*arguments) or 0)
        except BaseException as error:  # raised again when HDF5 is done, without what keeps HDF5's frames alive
            self.error = error.with_traceback(None)
            return 0


@contextlib.contextmanager
def _interrupting(shield: _Shield) -> Iterator[None]:
    """Let Ctrl-C end the writing as a failed call does, and not wherever HDF5 is."""
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def note(*_: object) -> None:
        shield.error = shield.error or KeyboardInterrupt()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _store_net(data: Any, net: Net) -> None:
    owned: set[int] = set()
    for layer in net.layers:
        group = _group(data, layer)
        for index, (_, blob) in enumerate(layer.blobs.entries()):
            if id(blob.origin) not in owned:
                owned.add(id(blob.origin))
                _store(group, layer, str(index), blob.numpy())


def _group(data: Any, layer: Layer) -> Any:
    parts = layer.name.split("/")
    if not all(parts) or "." in parts or "\0" in layer.name:
        raise UnsupportedLayerError("HDF5 cannot hold a group of that name", subject=layer.label)
    for part in parts:
        raw = part.encode("utf-8", "surrogateescape")  # h5py cannot say of a name that is not UTF-8 that it is missing
        if not data.id.links.exists(raw):
            data = data.create_group(raw if "\udc80" <= max(part) <= "\udcff" else part)
        elif hasattr(found := data[raw], "shape"):
            raise UnsupportedLayerError("HDF5 cannot hold a group of that name", subject=layer.label)
        else:
            data = found
    return data


def _store(group: Any, layer: Layer, index: str, values: Any) -> None:
    if index in group:
        raise UnsupportedLayerError("HDF5 cannot hold two layers of that name", subject=layer.label)
    group.create_dataset(index, data=values)
