"""A Caffe net in OpenCV that answers to the names of its layers, as nets that OpenCV 4 read from Caffe files do."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from bridge.errors import NotFoundError, UsageError, nearest
from bridge.schema import Blob, Layer, Net, times

Open = Callable[[Net], Any]
"""Makes OpenCV's own net of one of ours."""

INPUTS = "_input"
"""OpenCV's name of the layer, number 0, that stands for the inputs."""


class CaffeNet:
    """What ``readNetFromCaffe`` returns: it stands for a ``cv2.dnn.Net``, which cannot be inherited from.

    OpenCV 5 keeps neither the layers nor what they compute. Here ``forward("conv1")`` runs the net up to that
    layer, in a net of its own, which is made when it is first asked for. All else goes to OpenCV's net.

    Args:
        net: The net.
        open_net: Makes OpenCV's own net.
    """

    def __init__(self, net: Net, open_net: Open) -> None:
        self._net, self._open = net, open_net
        self._whole = open_net(net)
        self._parts: dict[int, Any] = {}
        self._inputs: dict[int, Sequence[str]] = {}
        self._calls: dict[Any, tuple[str, tuple[Any, ...], dict[str, Any]]] = {}

    __class__: Any = property(lambda self: type(self._whole))  # so that ``isinstance(net, cv2.dnn.Net)`` holds

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self._whole, name)
        return functools.partial(self._replay, name, "") if name.startswith(("set", "enable")) else method

    def _replay(self, name: str, key: Any, *args: Any, **keywords: Any) -> Any:
        """Call a method that sets something, now and on each net that is made later."""
        self._calls[name, key] = (name, args, keywords)
        for part in self._parts.values():
            self._call(part, name, args, keywords)
        return self._call(self._whole, name, args, keywords)

    def _call(self, made: Any, name: str, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if name == "setInput" and made is not self._whole:
            wanted = keywords.get("name", args[1] if len(args) > 1 else "")
            if wanted and wanted not in self._inputs[id(made)]:
                return None  # an input that this part of the net does not read
        return getattr(made, name)(*args, **keywords)

    def setInput(self, blob: Any, name: str = "", scalefactor: float = 1.0, mean: Any = ()) -> None:
        """Set an input: ``blob`` as (N, C, H, W); the first one without a name.

        The net reads ``(blob - mean) * scalefactor``, with up to four means, one for each channel. OpenCV 5
        itself takes neither.
        """
        values = np.array(blob)
        if scalefactor != 1 or np.any(mean):
            means = np.zeros(values.shape[1], np.float32)
            given = np.atleast_1d(mean)[: len(means)]
            means[: len(given)] = given
            values = (values.astype(np.float32) - means.reshape(-1, *[1] * (values.ndim - 2))) * np.float32(scalefactor)
        self._replay("setInput", name, values, name)

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """Compute the net, up to a layer where its name is given.

        Args:
            args: A layer's or a blob's name, or a list of them; the last layer by default.
            keywords: The same as ``outputName`` or ``outBlobNames``.

        Returns:
            The layer's output, float32; a list of outputs for a list of names.

        Raises:
            NotFoundError: There is no such layer or blob.
        """
        given = keywords.get("outBlobNames", keywords.get("outputName", args[-1] if args else None))
        if given is None or isinstance(given, str):
            return self._forward_to(self._place(given) if given else len(self._net.layers) - 1)
        return [self._forward_to(self._place(name)) for name in given]

    def _place(self, name: str) -> int:
        """The layer of a name, or that writes the blob of the name last."""
        layers = self._net.layers
        for place in reversed(range(len(layers))):
            if layers[place].name == name:
                return place
        for place in reversed(range(len(layers))):
            if name in layers[place].tops:
                return place
        known = [layer.name for layer in layers]
        raise NotFoundError(f"no layer '{name}'", where=self._net.where, hint=nearest(name, known))

    def _forward_to(self, place: int) -> Any:
        layer = self._net.layers[place]
        top = layer.tops[0]
        rewritten = any(top in later.tops for later in self._net.layers[place + 1 :])
        if top in self._net.outputs and not rewritten:
            return self._whole.forward(top)
        if place not in self._parts:
            part = self._up_to(place)
            made = self._parts[place] = self._open(part)
            self._inputs[id(made)] = tuple(part.inputs)
            for name, args, keywords in self._calls.values():
                self._call(made, name, args, keywords)
        return self._parts[place].forward(top)

    def _up_to(self, place: int) -> Net:
        """The layers that a layer needs, and the layer itself."""
        needed, kept = set(self._net.layers[place].bottoms), [self._net.layers[place]]
        for layer in reversed(self._net.layers[:place]):
            if needed.intersection(layer.tops):
                needed.difference_update(layer.tops)
                needed.update(layer.bottoms)
                kept.append(layer)
        return self._net.replace(layers=tuple(reversed(kept)))

    # -- what the model classes need ---------------------------------------------------------------

    @property
    def where(self) -> str:
        """Where the net comes from."""
        return self._net.where

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the first input, where the file names them."""
        shape = next(iter(self._net.inputs.values()), None)
        return (shape[3], shape[2]) if shape is not None and len(shape) == 4 else None

    @property
    def last(self) -> Layer:
        """The last layer."""
        return self._net.layers[-1]

    # -- the layers ------------------------------------------------------------------------------

    @property
    def _named(self) -> list[Layer]:
        return [layer for layer in self._net.layers if not layer.is_input]

    def getLayerNames(self) -> tuple[str, ...]:
        """The layers' names; the number of a layer is its place here plus one."""
        return tuple(layer.name for layer in self._named)

    def getLayerId(self, layer: str) -> int:
        """The number of a layer; 0 for :data:`INPUTS`, -1 if there is none of that name."""
        names = self.getLayerNames()
        return (INPUTS, *names).index(layer) if layer in (INPUTS, *names) else -1

    def getUnconnectedOutLayers(self) -> np.ndarray:
        """The numbers of the layers whose output no layer reads, int32."""
        last = {top: number for number, layer in enumerate(self._named, 1) for top in layer.tops}
        return np.array(sorted({last[top] for top in self._net.outputs if top in last}), np.int32)

    def getUnconnectedOutLayersNames(self) -> tuple[str, ...]:
        """The names of these layers."""
        names = self.getLayerNames()
        return tuple(names[number - 1] for number in self.getUnconnectedOutLayers())

    def getLayer(self, layerId: Any) -> CaffeLayerView | InputView:
        """A layer by its number or name; number 0 stands for the inputs.

        Raises:
            NotFoundError: There is none.
        """
        names = self.getLayerNames()
        if layerId in (0, INPUTS):
            return InputView(self._net.inputs)
        name = layerId if isinstance(layerId, str) else names[int(layerId) - 1] if 0 < layerId <= len(names) else ""
        if name not in names:
            raise NotFoundError(f"no layer {layerId!r}", where=self._net.where, hint=nearest(str(layerId), names))
        return CaffeLayerView(self, name)

    def getParam(self, layer: Any, numParam: int = 0) -> np.ndarray:
        """A parameter of a layer; see :attr:`CaffeLayerView.blobs`."""
        return self.getLayer(layer).blobs[numParam]

    def setParam(self, layer: Any, numParam: int, blob: Any) -> None:
        """Give a layer another parameter; see :attr:`CaffeLayerView.blobs`."""
        view = self.getLayer(layer)
        blobs: list[Any] = list(view.blobs)
        blobs[numParam] = blob
        view.blobs = blobs

    def _change(self, name: str, values: Sequence[Any]) -> None:
        """Give a layer other parameters."""
        place = self._place(name)
        layer = self._net.layers[place]
        stored = [blob for _, blob in layer.blobs.entries()]
        arrays = [np.asarray(value, np.float32) for value in values]
        if [array.size for array in arrays] != [blob.size for blob in stored][: len(arrays)] or not arrays:
            shapes = ", ".join(times(array.shape) for array in arrays) or "none"
            expected = ", ".join(times(blob.shape) for blob in stored) or "none"
            raise UsageError(f"blobs are {shapes}", expected=expected, where=f"{self._net.where}: {layer.label}")
        made = [Blob.of(array.reshape(blob.shape)) for array, blob in zip(arrays, stored, strict=False)]
        roles = [role for role, _ in layer.blobs.entries()]
        blobs = type(layer.blobs)(dict(zip(roles, [*made, *stored[len(made) :]], strict=True)))
        layers = [*self._net.layers]
        layers[place] = dataclasses.replace(layer, blobs=blobs)
        self._net = self._net.replace(layers=tuple(layers))
        self._whole, self._parts, self._inputs = self._open(self._net), {}, {}
        for call, args, keywords in self._calls.values():
            self._call(self._whole, call, args, keywords)


class InputView:
    """The layer number 0 of a :class:`CaffeNet`, which stands for its inputs.

    Attributes:
        name, type: As OpenCV has them.
        blobs: Empty.
    """

    name, type = INPUTS, ""

    def __init__(self, inputs: Iterable[str]) -> None:
        self._inputs = list(inputs)
        self.blobs: list[np.ndarray] = []

    def outputNameToIndex(self, outputName: str) -> int:
        """The place of an input; -1 if there is none of that name. Scripts ask for ``im_info`` so."""
        return self._inputs.index(outputName) if outputName in self._inputs else -1


class CaffeLayerView:
    """A layer of a :class:`CaffeNet`.

    Attributes:
        name: Its name.
        type: Caffe's name of its type.
    """

    def __init__(self, net: CaffeNet, name: str) -> None:
        self._owner, self.name = net, name

    @property
    def _layer(self) -> Layer:
        return self._owner._net.layers[self._owner._place(self.name)]

    @property
    def type(self) -> str:
        """Caffe's name of its type."""
        return self._layer.type

    def outputNameToIndex(self, outputName: str) -> int:
        """0 for any name, as OpenCV's layers answer."""
        return 0

    @property
    def blobs(self) -> list[np.ndarray]:
        """Copies of its parameters, float32; vectors as (1, N), as OpenCV has them. Other values may be assigned.

        Raises:
            UsageError: Assigned ones have another number of values.
        """
        arrays = [np.array(blob.numpy(), np.float32) for _, blob in self._layer.blobs.entries()]
        return [array if array.ndim > 1 else array.reshape(1, -1) for array in arrays]

    @blobs.setter
    def blobs(self, values: Sequence[Any]) -> None:
        self._owner._change(self.name, values)
