"""What becomes of each field of a net's definition: read by its layer, harmless, or the reason to refuse the net.

A field that a layer does not read may be one that cannot bear on the result (the learning rate of a weight), one of a
fork that computes something else because of it, or a slip of the pen. Only the first may pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bridge.caffe_files.proto import Field, meanings, variants
from bridge.errors import UnknownFieldError, nearest
from bridge.layers import REGISTRY, CaffeLayer
from bridge.layers.params import single
from bridge.layers.reading import Path, unread
from bridge.schema import Layer, Net
from bridge.schema.message import Message, Symbol, Value

_HOW = "--allow-unknown-fields goes on as if it were not there"
_START = "says how training starts; trained values take its place"
_IMAGES = "says what a data layer does to its images; the net's input is what comes out"
_SPEED = "chooses how the same result is computed"
_INT8 = "scales for integer arithmetic; the layer is computed in float32"
_TRAINING = "belongs to a layer that only training needs"
_SHOWS = "only draws, prints or saves what is computed"

ANYWHERE: Mapping[str, str] = {
    "weight_filler": _START, "bias_filler": _START, "filler": _START, "scale_filler": _START, "slope_filler": _START,
    "shift_filler": _START, "data_filler": _START, "weight_mask_filler": _START, "bias_mask_filler": _START,
    "center_filler": _START, "blob_filler": _START,
    "engine": _SPEED, "force_nd_im2col": _SPEED, "cudnn_convolution_algo_seeker": _SPEED,
    "conv_algos_override": _SPEED, "conv_algorithm": _SPEED,
    "moving_average_fraction": "weighs batches in training",
    "momentum": "weighs batches in training",
    "do_all_reduce": "joins the statistics of several machines in training",
    "update_global_stats": "makes training update the statistics",
    "stats_batch_size": "says from how many images training takes its statistics",
    "random_seed": "seeds what is random in training",
    "stable_prod_grad": "says how a gradient is computed",
    "bp_norm": "says how a gradient is computed",
    "fix_gradient": "says how a gradient is computed",
    "debug_info": _SHOWS, "visualize": _SHOWS, "visualize_threshold": _SHOWS, "save_file": _SHOWS,
    "save_output_param": _SHOWS, "label_map_file": _SHOWS,
    "share_in_parallel": "is for training on several GPUs",
}  # fmt: skip
"""Fields of parameter messages that bear on no result, whatever layer they are in, and why."""

LAYERS: Mapping[str, str] = {
    "transform_param": _IMAGES, "augmentation_param": _IMAGES, "cpm_transform_param": _IMAGES,
    "op_transform_param": _IMAGES, "detectnet_augmentation_param": _IMAGES, "detectnet_groundtruth_param": _IMAGES,
    "loss_param": "says how a loss is summed up",
    "blobs_lr": "is a learning rate", "weight_decay": "is for training", "strict_dim": "checks shapes of shared blobs",
    "coeff_schedule_param": "changes a weight during training",
    "forward_type": _SPEED, "backward_type": _SPEED, "forward_math": _SPEED, "backward_math": _SPEED,
    "cudnn_math_override": _SPEED, "engine": _SPEED, "debug": _SHOWS,
    "multinode": "spreads training over machines", "mn_activation_param": "spreads training over machines",
    "mn_grad_compress_param": "spreads training over machines",
    "quantization_param": _INT8,
    "reshape_every_iter": "allocates memory anew",
}  # fmt: skip
"""Fields of ``LayerParameter`` itself that bear on no result, and why."""

NETS: Mapping[str, str] = {
    "force_backward": "is for training", "debug_info": _SHOWS, "mem_param": "saves memory",
    "default_forward_type": _SPEED, "default_backward_type": _SPEED, "default_forward_math": _SPEED,
    "default_backward_math": _SPEED, "default_conv_algos_override": _SPEED, "default_cudnn_math_override": _SPEED,
    "global_grad_scale": "is for training", "global_grad_scale_adaptive": "is for training",
    "reduce_buckets": "is for training on several GPUs", "eltwise_mem_sharing": "saves memory",
    "engine": _SPEED, "compile_net_state": _SPEED, "bn_stats_batch_size": "is for training",
    "multinode": "spreads training over machines",
}  # fmt: skip
"""Fields of ``NetParameter`` that bear on no result, and why."""

_READ = {
    "name",
    "type",
    "bottom",
    "top",
    "phase",
    "loss_weight",
    "param",
    "include",
    "exclude",
    "propagate_down",
    "blobs",
}
"""Fields of ``LayerParameter`` that are no type's own, and are read, or are for training only."""
_NET_READ = {"name", "state"}
"""Fields of ``NetParameter`` that are read, beside those that are layers or have become one."""
_CAFFE = "caffe.proto"


@dataclass(frozen=True)
class Unread:
    """A field that nothing here reads.

    Attributes:
        layer: The label of its layer, such as ``layer 'conv1' (Convolution)``.
        name: The layer's name.
        path: The names that lead to it: ``pooling_param.stride``.
        value: Its value.
        reason: Why it bears on no result; empty if it may.
        forks: The forks that have it, or ``caffe.proto``.
        hint: What to do about it.
    """

    layer: str
    name: str
    path: str
    value: Value
    reason: str = ""
    forks: tuple[str, ...] = ()
    hint: str = ""

    @property
    def text(self) -> str:
        """What is said of it in a note or an error."""
        value = "" if isinstance(self.value, (Message, bytes)) else f": {_brief(self.value)}"
        if self.reason:
            return f"{self.layer}: '{self.path}{value}' has no effect: it {self.reason}"
        if self.forks:
            forks = ", ".join(self.forks[:3])
            return f"{self.layer}: '{self.path}{value}' ({forks}) may change what the layer computes, and is not read"
        if self.path.rpartition(".")[2].isdecimal():
            return f"{self.layer}: field {self.path}{value} has no name: no known caffe.proto tells what it is"
        return f"{self.layer}: '{self.path}{value}' is in no known caffe.proto"


def unread_fields(net: Net) -> list[Unread]:
    """The fields of a net, and of its layers of known types, that nothing here reads.

    Args:
        net: The net.

    Returns:
        Harmless ones too, in the order of the layers.

    Source: caffe.proto, and those of the forks in ``bridge/caffe_files/proto/forks.proto``.
    """
    return [*_fields_of_net(net), *(found for layer in net.layers for found in fields_of(layer))]


def _fields_of_net(net: Net) -> Iterator[Unread]:
    """The fields of the net itself that are not read."""
    for name, value in net.definition.items():
        if name not in _NET_READ:
            known = variants("NetParameter").get(name, {})
            hint = "" if known else nearest(name, [*_NET_READ, "layer", "input", "input_dim", "input_shape"])
            yield Unread("the net", "", name, value, NETS.get(name, ""), tuple(known), hint)


def fields_of(layer: Layer) -> Iterator[Unread]:
    """The same for one layer."""
    if not isinstance(layer, CaffeLayer):
        return
    for path, value in unread(layer):
        own = path[0] in messages_of(type(layer)) and isinstance(value, Message)
        if path[0] not in _READ and not own:
            yield _evaluated(layer, path, value)
        elif isinstance(value, Message):
            for inner, leaf in _leaves(value):
                if own or not known_as((*path, *inner)):
                    yield _evaluated(layer, (*path, *inner), leaf)


def refuse_unknown_fields(net: Net, way_out: str = _HOW) -> None:
    """Refuse a net with a field that may change what it computes, unless it was loaded with ``allow_unknown_fields``.

    Args:
        net: The net.
        way_out: What to do where the field does not matter.

    Raises:
        UnknownFieldError: There is one; names the layer, the field and its value.
    """
    wrong = [found for found in unread_fields(net) if not found.reason]
    if wrong and not net.allow_unknown_fields:
        more = f", and {len(wrong) - 1} more such field{'s' * (len(wrong) > 2)}" if len(wrong) > 1 else ""
        hint = "; ".join(part for part in (wrong[0].hint, way_out) if part)
        raise UnknownFieldError(wrong[0].text + more, where=net.where, hint=hint)


def field_notes(net: Net) -> list[str]:
    """A line for each field that is not read and that stock Caffe does not have, or may bear on the result.

    What stock Caffe has and is harmless, such as a filler, is not worth a line. A field that many layers have is
    named once.
    """
    notes: dict[str, list[str]] = {}
    for found in unread_fields(net):
        if not found.reason or not (_CAFFE in found.forks or found.reason in (_START, _SPEED, _TRAINING)):
            text = found.text.removeprefix(f"{found.layer}: ")
            notes.setdefault(text, []).append(found.layer)
    return [
        f"{layers[0]}{f' and {len(layers) - 1} more' if len(layers) > 1 else ''}: {text}"
        for text, layers in notes.items()
    ]


def harmless(cls: type[CaffeLayer], path: Path) -> str:
    """Why a field bears on no result of a layer of a type; empty if it may, or if the layer reads it.

    Args:
        cls: The layer's type.
        path: The names from ``LayerParameter`` to the field.
    """
    own = path[0] in messages_of(cls)
    if own and (reason := cls.harmless.get(".".join(path[1:])) or cls.harmless.get(path[-1], "")):
        return reason
    if len(path) > 1 and (common := next((ANYWHERE[name] for name in path[1:] if name in ANYWHERE), "")):
        return common
    if not own and path[0] in LAYERS:
        return LAYERS[path[0]]
    if (cls.training_only and known_as(path)) or (cls.reads_data and own):
        return _TRAINING
    if not own and path[0] not in _READ and _is_of_others(path[0]):
        return "belongs to layers of other types"
    return ""


def known_as(path: Path) -> Mapping[str, Field]:
    """The field at the end of a path, in each fork that has it.

    Args:
        path: The names from ``LayerParameter`` to the field.
    """
    messages = {"LayerParameter"}
    found: dict[str, Field] = {}
    for name in path:
        found = {fork: field for message in sorted(messages) for fork, field in variants(message).get(name, {}).items()}
        messages = {field.type for field in found.values() if field.type}
    return found


def _evaluated(layer: CaffeLayer, path: Path, value: Value) -> Unread:
    known = known_as(path)
    reason = harmless(type(layer), path)
    if not reason and known and all(_is_default(field, value) for field in known.values()):
        reason = "has its default value"
    hint = "" if reason or known else _hint(layer, path)
    return Unread(layer.label, layer.name, ".".join(path), value, reason, tuple(known), hint)


def _hint(layer: CaffeLayer, path: Path) -> str:
    """What may have been meant by a field that no schema has."""
    if path[-1].isdecimal():
        messages = {field.type for field in known_as(path[:-1]).values()} if path[:-1] else {"LayerParameter"}
        names = {fork: name for message in messages for fork, name in meanings(message, int(path[-1])).items()}
        fit = [f"{name} in {fork}" for fork, name in names.items() if path[:-1] or name in messages_of(type(layer))]
        choice = f"it is {', '.join(fit[:4])}: name the fork with --dialect; " if fit else ""
        return f"{choice}a prototxt, given as well, names its fields"
    if path[:-1]:
        return nearest(path[-1], [name for field in known_as(path[:-1]).values() for name in variants(field.type)])
    return nearest(path[0], [*messages_of(type(layer)), *_READ])


def messages_of(cls: type[CaffeLayer]) -> tuple[str, ...]:
    """The fields of ``LayerParameter`` that a layer type has its parameters in."""
    return tuple(name for name in (cls.message, *cls.aliases, *cls.more_messages) if name)


def _is_of_others(name: str) -> bool:
    """Whether a message is of BVLC's or SSD's caffe.proto, where no layer reads another type's, or of a known type."""
    return _CAFFE in variants("LayerParameter").get(name, {}) or any(
        name in messages_of(cls) for cls in REGISTRY.values()
    )


def _is_default(field: Field, value: Value) -> bool:
    default = field.default
    if isinstance(default, Symbol) and isinstance(value, int) and not isinstance(value, bool):
        return bool(field.symbols.get(value) == default)
    if field.kind == "float" and isinstance(value, (int, float)) and isinstance(default, float):
        return single(value) == default
    return default is not None and value == default


def _leaves(message: Message, path: Path = ()) -> Iterator[tuple[Path, Value]]:
    for name, value in message.items():
        if isinstance(value, Message):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _brief(value: Value) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, Symbol) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
