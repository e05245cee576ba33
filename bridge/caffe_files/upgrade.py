"""The three generations of Caffe's net definitions, brought to the current one (V2).

Works on :class:`~bridge.schema.message.Message` trees, so that a prototxt and a caffemodel of
any age go the same way. The fields of a layer that are no parameters, its blobs among
them, are carried along as they are.

Source: Caffe's ``upgrade_proto.cpp``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bridge.caffe_files.align import offsets
from bridge.errors import FormatError
from bridge.schema.message import Message, Symbol, Value

_V0_TYPES = {
    "accuracy": "ACCURACY",
    "bnll": "BNLL",
    "concat": "CONCAT",
    "conv": "CONVOLUTION",
    "data": "DATA",
    "dropout": "DROPOUT",
    "euclidean_loss": "EUCLIDEAN_LOSS",
    "flatten": "FLATTEN",
    "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT",
    "im2col": "IM2COL",
    "images": "IMAGE_DATA",
    "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "softmax": "SOFTMAX",
    "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT",
    "tanh": "TANH",
    "window_data": "WINDOW_DATA",
}

_V1_TYPES = {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ACCURACY": "Accuracy",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss",
    "CONVOLUTION": "Convolution",
    "DATA": "Data",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "ELTWISE": "Eltwise",
    "EUCLIDEAN_LOSS": "EuclideanLoss",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "HINGE_LOSS": "HingeLoss",
    "IM2COL": "Im2col",
    "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SILENCE": "Silence",
    "SLICE": "Slice",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "TANH": "TanH",
    "THRESHOLD": "Threshold",
    "WINDOW_DATA": "WindowData",
}

_FORK_TYPES = {
    "BN": "BN", "PRELU": "PReLU", "ELU": "ELU", "RELU6": "ReLU6", "SPP": "SPP", "DENSE_CRF": "DenseCRF",
    "ROIPOOLING": "ROIPooling", "ROI_POOLING": "ROIPooling", "PSROI_POOLING": "PSROIPooling",
}  # fmt: skip
"""V1 types of forks whose name is not the V2 name's words with underscores."""

_KEPT = ("Concat", "Eltwise", "LRN", "MVN", "Softmax", "Split", "Slice", "AbsVal", "BNLL", "Dropout", "Exp", "Power")
_VIEWS = {
    "Convolution": ("convolution_param", False), "Deconvolution": ("convolution_param", True),
    "Pooling": ("pooling_param", False), "ReLU": ("", False), "Sigmoid": ("", False), "TanH": ("", False),
    "Threshold": ("", False), "Log": ("", False), "PReLU": ("", False), **dict.fromkeys(_KEPT, ("", False)),
}  # fmt: skip
"""What old nets' crops are aligned by, for :func:`bridge.caffe_files.align.offsets`."""

_CONV, _POOL, _IP = "convolution_param", "pooling_param", "inner_product_param"
_DATA, _IMAGES, _WINDOW = "data_param", "image_data_param", "window_data_param"
_WEIGHTED = {"conv": _CONV, "innerproduct": _IP}
_SPATIAL = {"conv": _CONV, "pool": _POOL}
_TRANSFORM = "transform_param"

# V0 field -> its name in the parameter message, and that message for each layer type
# (``*``: whatever the type).
_V0_FIELDS: dict[str, tuple[str, dict[str, str]]] = {
    "num_output": ("num_output", _WEIGHTED),
    "biasterm": ("bias_term", _WEIGHTED),
    "weight_filler": ("weight_filler", _WEIGHTED),
    "bias_filler": ("bias_filler", _WEIGHTED),
    "pad": ("pad", _SPATIAL),
    "kernelsize": ("kernel_size", _SPATIAL),
    "stride": ("stride", _SPATIAL),
    "group": ("group", {"conv": _CONV}),
    "pool": ("pool", {"pool": _POOL}),
    "dropout_ratio": ("dropout_ratio", {"dropout": "dropout_param"}),
    "local_size": ("local_size", {"lrn": "lrn_param"}),
    "alpha": ("alpha", {"lrn": "lrn_param"}),
    "beta": ("beta", {"lrn": "lrn_param"}),
    "k": ("k", {"lrn": "lrn_param"}),
    "source": (
        "source",
        {
            "data": _DATA,
            "hdf5_data": "hdf5_data_param",
            "images": _IMAGES,
            "window_data": _WINDOW,
            "infogain_loss": "infogain_loss_param",
        },
    ),
    "batchsize": (
        "batch_size",
        {"data": _DATA, "hdf5_data": "hdf5_data_param", "images": _IMAGES, "window_data": _WINDOW},
    ),
    "rand_skip": ("rand_skip", {"data": _DATA, "images": _IMAGES}),
    "shuffle_images": ("shuffle", {"images": _IMAGES}),
    "new_height": ("new_height", {"images": _IMAGES}),
    "new_width": ("new_width", {"images": _IMAGES}),
    "concat_dim": ("concat_dim", {"concat": "concat_param"}),
    "det_fg_threshold": ("fg_threshold", {"window_data": _WINDOW}),
    "det_bg_threshold": ("bg_threshold", {"window_data": _WINDOW}),
    "det_fg_fraction": ("fg_fraction", {"window_data": _WINDOW}),
    "det_context_pad": ("context_pad", {"window_data": _WINDOW}),
    "det_crop_mode": ("crop_mode", {"window_data": _WINDOW}),
    "scale": ("scale", {"*": _TRANSFORM}),
    "meanfile": ("mean_file", {"*": _TRANSFORM}),
    "cropsize": ("crop_size", {"*": _TRANSFORM}),
    "mirror": ("mirror", {"*": _TRANSFORM}),
}

# V1 list -> field of the V2 ``param`` at the same place.
_V1_PARAMS = {"param": "name", "blob_share_mode": "share_mode", "blobs_lr": "lr_mult", "weight_decay": "decay_mult"}
_V1_DATA = {"DATA": _DATA, "IMAGE_DATA": _IMAGES, "WINDOW_DATA": _WINDOW}
_NET_LEVEL = ("layer", "layers", "input", "input_shape", "input_dim")


def upgrade_net(definition: Message) -> tuple[Message, list[Message]]:
    """Bring a net of any generation to the current form.

    Args:
        definition: A ``NetParameter``, from text or from a binary file; left as it is.

    Returns:
        The fields of the net itself, and its layers as ``LayerParameter`` messages.
        Net-level inputs have become a first layer of type ``Input``; where the net has
        no shape for them that layer has none either. DeepLab's ``hole`` has become ``dilation``.

    Raises:
        FormatError: The definition cannot be understood as a net.
    """
    old = _layers(definition, "layers")
    if any("layer" in layer for layer in old):
        old = [_v0_to_v1(layer) for layer in _fold_padding(definition, old)]
    # As in Caffe, old layers win where weights have both kinds; a definition is refused, see structure.py.
    layers = [_v1_to_v2(layer) for layer in old] if old else [_shallow(layer) for layer in _layers(definition, "layer")]
    if "input" in definition:
        layers.insert(0, _input_layer(definition))
    for layer in layers:
        _freeze_batch_norm(layer)
        _name_dilation(layer)
    if old:
        _align_crops(layers)
    return _shallow(definition, without=_NET_LEVEL), layers


def _shallow(message: Message, without: Collection[str] = ()) -> Message:
    """A copy that shares its sub-messages."""
    twin = Message(message.where)
    for name in message.names():
        if name not in without:
            twin.set(name, *message.all(name))
    return twin


def _layers(definition: Message, name: str) -> list[Message]:
    layers = definition.messages(name)
    if len(layers) != len(definition.all(name)):
        raise FormatError(f"'{name}' holds a plain value", expected=f"'{name} {{ ... }}'", where=definition.where)
    return layers


# -- V0 ------------------------------------------------------------------------------------


def _fold_padding(definition: Message, layers: Sequence[Message]) -> list[Message]:
    """Drop the padding layers; the layers that they fed pad for themselves."""
    source: dict[str, Message] = {}
    folded = []
    for layer in layers:
        inner = layer.message("layer")
        if inner.text("type") == "padding":
            _expect_one(layer, "bottom")
            _expect_one(layer, "top")
        else:
            folded.append(_take_padding(layer, source))
        for top in layer.all("top"):
            source[str(top)] = layer
    return folded


def _take_padding(layer: Message, source: dict[str, Message]) -> Message:
    """The layer with the ``pad`` and the bottom of the padding layer before it, if there is one."""
    feeders = [source.get(str(bottom), Message()) for bottom in layer.all("bottom")]
    padding = [feeder for feeder in feeders if feeder.message("layer").text("type") == "padding"]
    if not padding:
        return layer
    inner = _shallow(layer.message("layer"))
    if inner.text("type") not in _SPATIAL:
        raise _odd(layer, "takes a padding layer's output", "a conv or pool layer to do so")
    _expect_one(layer, "bottom")
    inner.set("pad", *padding[0].message("layer").all("pad"))
    padded = _shallow(layer)
    padded.set("layer", inner)
    padded.set("bottom", *padding[0].all("bottom"))
    return padded


def _expect_one(layer: Message, field: str) -> None:
    if len(layer.all(field)) != 1:
        raise _odd(layer, f"has {len(layer.all(field))} {field}s", expected="one, because of padding")


def _odd(layer: Message, problem: str, expected: str) -> FormatError:
    inner = layer.message("layer")
    name, kind = inner.text("name"), inner.text("type")
    return FormatError(problem, subject=f"layer '{name}' ({kind})", expected=expected, where=layer.where)


def _v0_to_v1(connection: Message) -> Message:
    if "layer" not in connection:
        return connection
    inner = connection.message("layer")
    kind = inner.text("type")
    layer = _shallow(connection, without=("layer",))
    params: dict[str, Message] = {}
    for name, value in inner.items():
        new_name, owners = _V0_FIELDS.get(name, (name, {}))
        owner = owners.get(kind) or owners.get("*")
        target = params.setdefault(owner, Message(layer.where)) if owner else layer
        target.add(new_name, value)
    if "type" in inner:
        layer.set("type", Symbol(_V0_TYPES[kind]) if kind in _V0_TYPES else kind)
    for owner, message in params.items():
        layer.add(owner, message)
    return layer


# -- V1 ------------------------------------------------------------------------------------


def _v1_to_v2(old: Message) -> Message:
    kind = _v1_type(old.get("type"))
    layer = _shallow(old, without=_V1_PARAMS)
    if "type" in old:
        layer.set("type", _V1_TYPES[kind] if kind in _V1_TYPES else _fork_type(old.get("type"), kind))
    layer.set("param", *_param_specs(old))
    if kind in _V1_DATA:
        _move_transform(layer, _V1_DATA[kind])
    return layer


def _v1_type(value: Value | None) -> str:
    """The name of a V1 layer type; a number, in a prototxt or from a fork, is looked up."""
    if isinstance(value, int):
        from bridge.caffe_files.proto import schema

        return schema("V1LayerParameter").by_name["type"].symbols.get(value, str(value))
    return "NONE" if value is None else str(value)


def _align_crops(layers: Sequence[Message]) -> None:
    """Give the crops of V1 nets the offsets that their fork works out; where that fails, they stay of no known type."""
    for layer in layers:
        if layer.text("type") == "Crop" and "crop_param" not in layer:
            found = offsets(layer, layers, _VIEWS)
            if found is None:
                layer.set("type", "CROP")
            else:
                layer.set("crop_param", Message(layer.where, axis=2, offset=[*found]))


def crop_notes(layers: Sequence[Message]) -> list[str]:
    """A remark for each crop that begins at 0 as in Caffe 1.0, and elsewhere in the fork of FCN and HED."""
    notes = []
    for layer in layers:
        bare = layer.text("type") == "Crop" and "crop_param" not in layer and len(layer.all("bottom")) == 2
        found = offsets(layer, layers, _VIEWS) if bare else None
        if found and any(found):
            wanted = f"crop_param {{ axis: 2 {' '.join(f'offset: {offset}' for offset in found)} }}"
            name = f"layer '{layer.text('name')}' (Crop)"
            notes.append(f"{name} begins at 0, as in Caffe 1.0; for a model of FCN's or HED's fork it needs {wanted}")
    return notes


def _fork_type(value: Value | None, name: str) -> str:
    """The V2 name of a fork's V1 type: ``SEG_ACCURACY`` is ``SegAccuracy``; a name in quotation marks is one of V2."""
    if not isinstance(value, (Symbol, int)) or not name.isupper():
        return name
    return _FORK_TYPES.get(name) or "".join(word.capitalize() for word in name.split("_"))


def _param_specs(old: Message) -> list[Message]:
    """One ``ParamSpec`` per place in the longest of V1's lists."""
    specs = [Message(old.where) for _ in range(max(len(old.all(name)) for name in _V1_PARAMS))]
    for name, field in _V1_PARAMS.items():
        for spec, value in zip(specs, old.all(name), strict=False):
            spec.set(field, value)
    return specs


def _move_transform(layer: Message, owner: str) -> None:
    """Move what a data layer does to its images to ``transform_param``."""
    params = _shallow(layer.message(owner))
    transform = _shallow(layer.message(_TRANSFORM))
    for name in ("scale", "mean_file", "crop_size", "mirror"):
        if name in params:
            transform.set(name, *params.all(name))
            params.set(name)
    if len(transform):
        layer.set(owner, params)
        layer.set(_TRANSFORM, transform)


# -- V2 ------------------------------------------------------------------------------------


def _input_layer(definition: Message) -> Message:
    tops = [str(name) for name in definition.all("input")]
    layer = Message(definition.where, name="input", type="Input")
    layer.set("top", *tops)
    shapes = definition.messages("input_shape")
    dims = definition.all("input_dim")
    if dims and not shapes:
        if len(dims) != 4 * len(tops):
            raise FormatError(
                f"{len(dims)} input_dim for {len(tops)} inputs", expected=f"{4 * len(tops)}", where=definition.where
            )
        shapes = [Message(definition.where, dim=dims[i : i + 4]) for i in range(0, len(dims), 4)]
    if shapes:
        if len(shapes) not in (1, len(tops)):
            raise FormatError(f"{len(shapes)} input_shape for {len(tops)} inputs", where=definition.where)
        layer.set("input_param", Message(definition.where, shape=[*shapes]))
    return layer


RENAMED = frozenset({(_CONV, name) for name in ("hole", "hole_h", "hole_w", "dilation_h", "dilation_w")})
"""Fields that have another name, or another form, after :func:`upgrade_net`."""


def _name_dilation(layer: Message) -> None:
    """Rename DeepLab's ``hole``, ``hole_h``, ``hole_w`` and TSN's ``dilation_h``, ``dilation_w``.

    Source: DeepLab's conv_layer.cpp: ``hole`` holds for both axes unless ``hole_h`` and ``hole_w`` are given.
    """
    given = layer.message(_CONV)
    for whole, sides in (("hole", ("hole_h", "hole_w")), ("dilation", ("dilation_h", "dilation_w"))):
        if any(side in given for side in sides) or (whole == "hole" and whole in given):
            values = [value for side in sides for value in (given.all(side) or given.all(whole) or [1])[:1]]
            params = _shallow(given, without=(whole, *sides))
            params.set("dilation", *(values if any(side in given for side in sides) else given.all(whole)))
            layer.set(_CONV, params)


def _freeze_batch_norm(layer: Message) -> None:
    """BatchNorm's three blobs are statistics; files that name all three let no solver touch them."""
    params = layer.messages("param")
    if layer.text("type") == "BatchNorm" and len(params) == 3:
        frozen = [param.copy() for param in params]
        for param in frozen:
            param.set("lr_mult", 0.0)
            param.set("decay_mult", 0.0)
        layer.set("param", *frozen)
