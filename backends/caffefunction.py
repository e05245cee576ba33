"""Reader of ``.caffemodel`` files through Chainer's own ``CaffeFunction``.

It shares no line of parsing with the reader ``protobuf``: where both deliver the same
bits, neither misread. Values are taken from the links that ``CaffeFunction`` made. What a
layer is called, what type it has and how many values it stores comes from the messages
of Chainer's own ``caffe_pb2``, whose caffe.proto is of 2017.
"""

from __future__ import annotations

import importlib
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bridge import compat
from bridge.caffe_files.prototxt import parse
from bridge.caffe_files.upgrade import upgrade_net
from bridge.errors import FormatError, MissingFileError, ModelError, UnsupportedLayerError
from bridge.files.sniff import HEAD, KINDS, identify
from bridge.schema import Blob, RawLayer, RawNet, Shape, count, times
from bridge.schema.groups import unspread_groups
from bridge.schema.message import Message

_LEGACY = ("num", "channels", "height", "width")
_HINT = "reader 'protobuf' reads it"

# What CaffeFunction, and NumPy beneath it, raise at a layer that they cannot take.
_RAISED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _Stored(NamedTuple):
    """What the file says of a layer's blobs, without their values.

    Attributes:
        method: Name of the method by which CaffeFunction takes the layer.
        shapes: The shape that each blob declares.
        skipped: Why CaffeFunction skips the layer; empty if it does not.
        known: Whether Chainer's caffe.proto knows all of its parameters.
        group: Number of groups of its kernel.
        factor: Scale factor of its statistics; None if the layer has none.
        problem: Why CaffeFunction cannot take its values; empty if it should.
    """

    method: str = ""
    shapes: tuple[Shape, ...] = ()
    skipped: str = ""
    known: bool = True
    group: int = 1
    factor: float | None = None
    problem: str = ""


def read(path: str | Path, *, prototxt: str | Path | None = None) -> RawNet:
    """Read a caffemodel as ``chainer.links.caffe.CaffeFunction(path)`` does.

    Args:
        path: The file.
        prototxt: Not needed; a caffemodel holds its net's definition.

    Returns:
        The net in Caffe's current form, blobs float32. A layer whose values
        ``CaffeFunction`` passes over, or changes, comes without them and says why in
        ``uncovered``; layers that it skips and that store no values are named in
        ``notes``. ``complete`` is False where Chainer does not know a parameter.

    Raises:
        MissingExtraError: Chainer is not installed.
        MissingFileError: The file cannot be opened.
        FormatError: It is no caffemodel, or an empty or damaged one.
        UnsupportedLayerError: ``CaffeFunction`` raises at one of the layers.
        ModelError: A kernel with groups has a value between them that is not zero.

    Source: chainer/links/caffe/caffe_function.py.
    """
    compat.import_chainer()
    caffe_function = importlib.import_module("chainer.links.caffe.caffe_function")
    where = str(path)
    rest, definitions, stored = _survey(_parse(path, caffe_function), caffe_function, where)
    for definition, layer in zip(definitions, stored, strict=True):
        if layer.problem:
            raise _cannot(where, definition, layer.problem)
    function = _function(where, definitions, caffe_function)
    layers = tuple(
        _layer(definition, layer, function, where) for definition, layer in zip(definitions, stored, strict=True)
    )
    return RawNet(
        name=rest.text("name"),
        layers=layers,
        definition=rest,
        source=where,
        reader="caffefunction",
        notes=tuple(_notes(definitions, stored)),
        complete=all(layer.known for layer in stored),
    )


def _parse(path: str | Path, caffe_function: Any) -> Any:
    """The file as a ``NetParameter`` of Chainer's."""
    from google.protobuf.message import DecodeError

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise MissingFileError(f"cannot be read: {error.strerror}", where=str(path)) from None
    kind = KINDS[identify(data[:HEAD])]
    if kind.name != "caffemodel":
        problem, expected = (kind.problem, "") if kind.problem else (f"holds {kind.name}", "a caffemodel")
        raise FormatError(problem, expected=expected, where=str(path), hint=kind.hint)
    net = caffe_function.caffe_pb.NetParameter()
    try:
        net.MergeFromString(data)
    except DecodeError as error:
        hint = "the file is damaged or truncated; reader 'protobuf' says at which byte"
        raise FormatError(f"protobuf cannot decode it: {error}", where=str(path), hint=hint) from None
    if not net.layer and not net.layers:
        raise FormatError("holds no layers, which CaffeFunction takes for an empty net", where=str(path))
    if net.layer and net.layers:
        message = "has both 'layer' and 'layers'; CaffeFunction reads the former, Caffe the latter"
        raise ModelError(message, where=str(path), hint=_HINT)
    return net


# -- what the file says ----------------------------------------------------------------------


def _survey(net: Any, caffe_function: Any, where: str) -> tuple[Message, list[Message], list[_Stored]]:
    """The net's own fields, its layers in Caffe's current form, and what each stores.

    The values are dropped from ``net`` on the way.
    """
    stored = [_stored(layer, caffe_function) for layer in net.layer or net.layers]
    rest, definitions = upgrade_net(_as_message(net, where))
    places = [definition.all("blobs") for definition in definitions]
    for definition in definitions:
        definition.set("blobs")
    # An Input layer that the upgrade made of the net's inputs has no place in the file.
    return rest, definitions, [stored[int(str(at[0]))] if at else _Stored() for at in places]


def _as_message(net: Any, where: str) -> Message:
    """The definition; each layer's place in the file stands in for its blobs."""
    from google.protobuf.text_format import MessageToString

    field = "layer" if net.layer else "layers"
    layers = [parse(MessageToString(layer), where) for layer in getattr(net, field)]
    net.ClearField(field)
    message = parse(MessageToString(net), where)
    for place, layer in enumerate(layers):
        layer.set("blobs", place)
        message.add(field, layer)
    return message


def _stored(layer: Any, caffe_function: Any) -> _Stored:
    """What a layer stores; drops its blobs, and the fields that the schema does not know."""
    old = layer.DESCRIPTOR.name == "V1LayerParameter"
    v0 = old and layer.HasField("layer")  # V0 nests a layer in a layer
    blobs = (layer.layer if v0 else layer).blobs
    taken = (caffe_function._oldname_to_method if old else caffe_function._type_to_method).get(layer.type)
    method = taken.__name__ if taken else ""
    shapes = tuple(_shape(blob) for blob in blobs)
    problem, group = "", 1
    if method in _TAKE:
        problem = next((p for i, blob in enumerate(blobs) if (p := _unreadable(i, blob, shapes[i]))), "")
    if method in _KERNELS and shapes:
        group = layer.convolution_param.group
        problem = problem or _odd_kernel(shapes[0], caffe_function._get_ksize(layer.convolution_param), group)
    factor = blobs[2].data[0] if method == "_setup_batchnorm" and len(blobs) > 2 and blobs[2].data else None
    skipped = "" if method and method != "_setup_data" else "of Caffe's first format (V0)" if v0 else "of this type"
    del blobs[:]
    return _Stored(method, shapes, skipped, _all_known(layer), group, factor, problem)


def _all_known(layer: Any) -> bool:
    """Whether the layer has no field that the schema lacks; drops those."""
    size = layer.ByteSize()
    layer.DiscardUnknownFields()
    return bool(size == layer.ByteSize())


def _shape(blob: Any) -> Shape:
    """The declared shape; any of the four old fields overrules a newer one."""
    if any(blob.HasField(name) for name in _LEGACY):
        return tuple(getattr(blob, name) for name in _LEGACY)
    return tuple(blob.shape.dim)


def _unreadable(index: int, blob: Any, shape: Shape) -> str:
    """What keeps CaffeFunction from a blob, which would fill in, cut off or fail at whatever is there."""
    if len(blob.double_data):  # it overrules `data`, which may be there as well
        return f"blob {index} is stored as double_data, which CaffeFunction does not read"
    if len(blob.data) != count(shape):
        return f"blob {index} has {len(blob.data)} values in its field 'data', expected {count(shape)} = {times(shape)}"
    return ""


def _odd_kernel(shape: Shape, ksize: Any, group: int) -> str:
    """What keeps CaffeFunction from a kernel; it would allocate by the parameters, not by the values."""
    if len(shape) != 4:
        return f"blob 0 has {len(shape)} axes; CaffeFunction knows only convolution in two dimensions, which has 4"
    kernel = (ksize, ksize) if isinstance(ksize, int) else tuple(ksize)
    if kernel != shape[2:]:
        return f"kernel {times(kernel)}, blob 0 is {times(shape)}"
    return f"{shape[0]} channels do not divide into {group} groups" if group < 1 or shape[0] % group else ""


# -- what CaffeFunction makes of it ----------------------------------------------------------


def _function(where: str, definitions: Sequence[Message], caffe_function: Any) -> Any:
    """The CaffeFunction of a file."""
    float32 = caffe_function.configuration.using_config("dtype", np.float32)
    with warnings.catch_warnings(), np.errstate(all="ignore"), float32:
        warnings.simplefilter("ignore")  # that it skips a layer is told by `uncovered` and the notes
        try:
            own = getattr(caffe_function, "ChainersCaffeFunction", caffe_function.CaffeFunction)
            return own(where)
        except _RAISED as error:
            name = _failing_layer(error)
            problem = f"CaffeFunction raises {type(error).__name__}: {_one_line(error)}"
            found = next((definition for definition in definitions if definition.text("name") == name), Message())
            raise _cannot(where, found, problem) from None


def _failing_layer(error: BaseException) -> str:
    """Name of the layer that was being read: a local variable where the error passed through."""
    frames = [frame.f_locals.get("layer") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((str(layer.name) for layer in frames if layer is not None), "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no reason given"


def _cannot(where: str, definition: Message, problem: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(problem, where=f"{where}: {_label(definition)}", hint=_HINT)


def _label(definition: Message) -> str:
    return f"layer '{definition.text('name')}' ({definition.text('type')})"


def _layer(definition: Message, stored: _Stored, function: Any, where: str) -> RawLayer:
    name, kind = definition.text("name"), definition.text("type")
    blobs: tuple[Blob, ...] = ()
    uncovered = _untaken(stored)
    if stored.shapes and not uncovered:
        try:
            arrays = [*_TAKE[stored.method](function[name], stored)]
        except ModelError as error:
            raise ModelError(str(error.args[0]), where=f"{where}: {_label(definition)}: blob 'weight'") from None
        if [array.size for array in arrays] == [count(shape) for shape in stored.shapes]:
            blobs = tuple(Blob.of(a.reshape(shape)) for a, shape in zip(arrays, stored.shapes, strict=True))
        else:
            uncovered = f"CaffeFunction takes {len(arrays)} of its {len(stored.shapes)} blobs"
    return RawLayer(name, kind, definition, blobs, uncovered)


def _untaken(stored: _Stored) -> str:
    """Why a layer's stored values are not to be had; empty if they are, or if there are none."""
    if not stored.shapes:
        return ""
    if stored.skipped:
        return f"CaffeFunction skips layers {stored.skipped}"
    if stored.method not in _TAKE:
        return "CaffeFunction expects no blobs in layers of this type, and drops them"
    if stored.factor not in (None, 1.0):
        return f"CaffeFunction divides mean and variance by scale factor {stored.factor:g} and keeps only the quotients"
    return ""


def _notes(definitions: Sequence[Message], stored: Sequence[_Stored]) -> Iterator[str]:
    """What is not covered and is no layer's ``uncovered``, since there are no values to miss."""
    skipped: dict[str, list[str]] = {}
    unknown = []
    for definition, layer in zip(definitions, stored, strict=True):
        if layer.skipped and not layer.shapes:
            skipped.setdefault(layer.skipped, []).append(_label(definition))
        if not layer.known:
            unknown.append(_label(definition))
    for reason, labels in skipped.items():
        yield f"not covered, and without values: {', '.join(labels)}: CaffeFunction skips layers {reason}"
    if unknown:
        yield f"Chainer's caffe.proto does not know every parameter of {', '.join(unknown)}; a prototxt has them"


def _kernel(link: Any, stored: _Stored) -> Iterator[np.ndarray]:
    yield unspread_groups(link.W.array, stored.group)
    if link.b is not None:
        yield link.b.array


def _linear(link: Any, stored: _Stored) -> Iterator[np.ndarray]:
    yield link.W.array
    if link.b is not None:
        yield link.b.array


def _statistics(link: Any, stored: _Stored) -> Iterator[np.ndarray]:
    yield from (link.avg_mean, link.avg_var)
    if stored.factor is not None:
        yield np.ones(1, np.float32)  # the only factor that leaves the statistics as they were


def _scale(link: Any, stored: _Stored) -> Iterator[np.ndarray]:
    if hasattr(link, "W"):
        yield link.W.array
    if hasattr(link, "bias"):
        yield link.bias.b.array


_KERNELS = ("_setup_convolution", "_setup_deconvolution")
_TAKE: dict[str, Callable[[Any, _Stored], Iterator[np.ndarray]]] = {
    **dict.fromkeys(_KERNELS, _kernel),
    "_setup_inner_product": _linear,
    "_setup_batchnorm": _statistics,
    "_setup_scale": _scale,
}
