"""Reader and engine ``pycaffe``: the real Caffe, in another interpreter or container.

Caffe needs an old Python, and aborts its process where others raise. So it runs as a
child process that is given one small script (``worker.py``) and speaks with
it over stdin and stdout; nothing has to be installed beside Caffe, and no folder
shared. The interpreter is the option ``python`` or BRIDGE_PYCAFFE_PYTHON, and may be a
command line such as ``docker exec -i box python``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from backends.pycaffe.child import TIMEOUT, Answer, layer_types, missing, running, versions
from bridge.caffe_files.prototxt import format, parse
from bridge.caffe_files.upgrade import upgrade_net
from bridge.errors import MissingFileError, UnsupportedLayerError, UsageError
from bridge.layers.split import Split
from bridge.schema import Blob, RawLayer, RawNet, Shape
from bridge.schema.message import Message

__all__ = ["Session", "layer_types", "missing", "read", "versions"]

_PATHS = ("source", "mean_file", "meanfile", "root_folder", "file_name", "filename")
"""Fields that make a layer of Caffe open files of its own."""

_ids = itertools.count()


def read(
    path: str | Path,
    *,
    prototxt: str | Path | None = None,
    definition: str = "",
    python: str | None = None,
    timeout: float = TIMEOUT,
) -> RawNet:
    """Read weights as ``caffe.Net(prototxt, caffemodel, caffe.TEST)`` does.

    Args:
        path: ``.caffemodel`` or ``.caffemodel.h5``.
        prototxt: The net's definition, a file.
        definition: Its text, where there is no file.
        python: Command of the interpreter that has Caffe.
        timeout: Seconds that one request may take.

    Returns:
        The layers of phase TEST, with blobs of float32 in the shapes of the net.

    Raises:
        MissingExtraError: No such interpreter, or it cannot import caffe.
        UsageError: Neither prototxt nor definition is given.
        ModelError: Caffe refuses the net or its weights.
        FormatError: Caffe cannot parse one of the files.

    Source: caffe/python/caffe/_caffe.cpp, ``Net_Init`` and ``CopyTrainedLayersFrom``.
    """
    if prototxt is not None:
        definition = read_text(prototxt)
    if not definition:
        raise UsageError("pycaffe needs a prototxt beside the weights", where=str(path))
    with Session(definition, Path(path), python=python, timeout=timeout) as session:
        layers, net = session.params(), session.definition
        return RawNet(session.name, layers, net, str(path), "pycaffe", partial=True)


def read_text(prototxt: str | Path) -> str:
    """The text of a prototxt, unchanged, for Caffe's own parser.

    Raises:
        MissingFileError: It cannot be opened.
    """
    try:
        data = Path(prototxt).read_bytes()
    except OSError as error:
        raise MissingFileError(f"cannot be read: {error.strerror}", where=str(prototxt)) from None
    return data.decode("utf-8", "surrogateescape")


class Session:
    """A net of the real Caffe, as an engine: inputs in, any blobs out.

    Args:
        prototxt: Text of the net's definition.
        weights: ``.caffemodel`` or ``.caffemodel.h5``: its path, its bytes, or ``None``
            to leave the parameters as Caffe's fillers make them.
        python: Command of the interpreter that has Caffe.
        timeout: Seconds that one request may take.

    Attributes:
        name: The net's name.
        definition: Fields of the net itself.
        layers: Name and type of each layer, without the ``Split`` layers that Caffe inserts.
        inputs: Input blobs with their shapes.
        outputs: Output blobs.
    """

    def __init__(
        self,
        prototxt: str,
        weights: Path | bytes | None = None,
        *,
        python: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._prototxt, self._weights = prototxt, weights
        self._python, self._timeout = python, timeout
        self._where = str(weights) if isinstance(weights, Path) else "pycaffe"
        definition = parse(prototxt, self._where)
        _refuse_paths(definition)
        if _drop_numbered(definition):
            self._prototxt = format(definition)
        self.name = definition.text("name")
        self.definition, layers = upgrade_net(definition)
        self._definitions = {(layer.text("name"), layer.text("type")): layer for layer in layers}
        self._load()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the net in the child."""
        if self._child.alive:
            self._ask("forget")

    def params(self) -> tuple[RawLayer, ...]:
        """Every layer with its parameters, float32, in Caffe's order.

        A layer whose name is not among the weights keeps what its filler made of it:
        it is delivered without blobs, as uncovered.
        """
        arrays = iter(self._ask("params")[1])
        held = [(layer, tuple(Blob.of(next(arrays)) for _ in layer.untouched)) for layer in self._layers]
        return tuple(self._raw(layer, blobs) for layer, blobs in held if not self._inserted(layer))

    def forward(self, inputs: Mapping[str, Any], blobs: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Run the net.

        Args:
            inputs: Array of each input blob, any shape that the net can take; used as float32.
            blobs: Names of the blobs wanted; without it, the outputs. Of a blob that is
                written in place only the last value is left: see :meth:`forward_by_layer`.

        Returns:
            Blob -> float32 array.

        Raises:
            UsageError: A name is not one of the net's.
            ModelError: Caffe cannot run the net on these inputs.
        """
        names = list(self.outputs if blobs is None else blobs)
        if unknown := [name for name in names if name not in self._blobs]:
            raise UsageError(f"no blob '{unknown[0]}'", where=self._where, hint=f"blobs: {', '.join(self._blobs)}")
        arrays = self._run(inputs, [self._blobs.index(name) for name in names])
        return dict(zip(names, arrays, strict=True))

    def forward_by_layer(self, inputs: Mapping[str, Any]) -> list[tuple[str, dict[str, np.ndarray]]]:
        """Run the net, and take each layer's tops right after it ran.

        Returns:
            For each layer its name and top -> float32 array, so that the values that a
            later layer overwrites in place are there too.
        """
        arrays = iter(self._run(inputs, None))
        found = [(layer, {self._blobs[top]: next(arrays) for top in layer.tops}) for layer in self._layers]
        return [(layer.name, tops) for layer, tops in found if not self._inserted(layer)]

    def _run(self, inputs: Mapping[str, Any], blobs: list[int] | None) -> list[np.ndarray]:
        if set(inputs) != set(self.inputs):
            wanted, given = (", ".join(sorted(names)) or "none" for names in (self.inputs, inputs))
            raise UsageError(f"the inputs are {given}", expected=wanted, where=self._where)
        arrays = [np.asarray(array, "<f4", order="C") for array in inputs.values()]
        return self._ask("forward", arrays, inputs=[self._blobs.index(name) for name in inputs], blobs=blobs)[1]

    def _ask(self, op: str, arrays: Sequence[np.ndarray] = (), **fields: Any) -> Answer:
        if not self._child.alive:
            self._load()  # another net took the child down with it
        return self._child.ask({"op": op, "net": self._id, **fields}, arrays, self._timeout, self._where)

    def _load(self) -> None:
        self._child = running(self._python, self._timeout)
        self._id = next(_ids)
        arrays = [np.frombuffer(self._prototxt.encode("utf-8", "surrogateescape"), np.uint8)]
        path = ""
        if isinstance(self._weights, Path) and self._shared(self._weights):
            path = str(self._weights.resolve())
        elif self._weights is not None:
            data = self._weights.read_bytes() if isinstance(self._weights, Path) else self._weights
            arrays.append(np.frombuffer(data, np.uint8))
        net = self._ask("load", arrays, path=path)[0]
        self._layers = [_Layer(*layer) for layer in net["layers"]]
        self._blobs: list[str] = [name for name, _ in net["blobs"]]
        self.layers = [(layer.name, layer.type) for layer in self._layers if not self._inserted(layer)]
        self.inputs: dict[str, Shape] = {net["blobs"][i][0]: tuple(net["blobs"][i][1]) for i in net["inputs"]}
        self.outputs = tuple(self._blobs[i] for i in net["outputs"])

    def _inserted(self, layer: _Layer) -> bool:
        """Whether Caffe added the layer by itself, where a blob has several readers."""
        return layer.type in Split.types and (layer.name, layer.type) not in self._definitions

    def _raw(self, layer: _Layer, blobs: tuple[Blob, ...]) -> RawLayer:
        known = self._definitions.get((layer.name, layer.type))
        definition = known or Message(self._where, name=layer.name, type=layer.type)
        uncovered = "its name is not among the weights" if any(layer.untouched) else ""
        return RawLayer(layer.name, layer.type, definition, () if uncovered else blobs, uncovered)

    def _shared(self, path: Path) -> bool:
        """Whether the child sees this very file, so that its bytes need not be sent."""
        try:
            found = path.stat()
        except OSError as error:
            raise MissingFileError(f"cannot be read: {error.strerror}", where=self._where) from None
        identity = [found.st_dev, found.st_ino, found.st_size, int(found.st_mtime)]
        return bool(self._ask("sees", path=str(path.resolve()), identity=identity)[0]["sees"])


class _Layer(NamedTuple):
    """A layer as the child describes it; ``untouched`` has one flag per parameter."""

    name: str
    type: str
    tops: list[int]
    untouched: list[bool]


def _drop_numbered(message: Message) -> bool:
    """Remove the fields without a name, which Caffe cannot parse; whether there were any."""
    numbered = [name for name in message.names() if name.isdigit()]
    for name in numbered:
        message.set(name)
    inner = [_drop_numbered(value) for _, value in message.items() if isinstance(value, Message)]
    return bool(numbered) or any(inner)


def _refuse_paths(message: Message, layer: str = "") -> None:
    """Raise if a layer would open files that the net's definition names."""
    for name, value in message.items():
        if isinstance(value, Message):
            _refuse_paths(value, message.text("name", layer))
        elif name in _PATHS and isinstance(value, str):
            raise UnsupportedLayerError(
                f"layer '{message.text('name', layer)}' opens the file '{value}'",
                where=f"{message.where}: pycaffe",
                hint="give the deploy.prototxt: it has inputs where the training net has data layers",
            )
