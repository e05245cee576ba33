"""The net: its layers, blobs and parameters, and the passes over them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge.caffe.backprop import mark_backward
from bridge.caffe.blob import Blob
from bridge.caffe.engines import Engines
from bridge.caffe.layer import PHASES, InputNode, Layer, Node, TypedNode
from bridge.caffe.making import make_node
from bridge.caffe.pycaffe import PyNet
from bridge.caffe.wiring import Wiring, wire
from bridge.caffe_files import prototxt
from bridge.caffe_files.fields import refuse_unknown_fields
from bridge.errors import MissingFileError, ModelError, UsageError
from bridge.schema import Net as Schema
from bridge.schema import times
from bridge.schema.message import Message

Hook = Callable[[int], Any]


class Net(PyNet):
    """A net of Caffe's.

    Two forms::

        Net("deploy.prototxt", caffe.TEST, weights="net.caffemodel", level=0, stages=["deploy"])
        Net("deploy.prototxt", "net.caffemodel", caffe.TEST)

    Args:
        network_file: The prototxt.
        phase: ``caffe.TRAIN`` or ``caffe.TEST``.
        level: The level of Caffe's ``NetState``.
        stages: Its stages.
        weights: A file of weights, see :meth:`copy_from`.

    Attributes:
        layers: One :class:`bridge.caffe.Layer` per layer, in order.
        nodes: The same layers in their net.

    Raises:
        MissingFileError: A file does not exist or cannot be read.
        FormatError: A file is damaged.
        ModelError: The net does not fit together; names the layer.
        UnsupportedLayerError: A layer's type is not known.
        UsageError: An argument is wrong.

    Source: net.cpp ``Net::Init``, _caffe.cpp.
    """

    def __init__(self, network_file: Any, *args: Any, **keywords: Any) -> None:
        phase, level, stages, weights = _arguments(*args, **keywords)
        path = _path(network_file)
        self._build(prototxt.parse_file(path), PHASES[phase], level, stages, str(path))
        if weights is not None:
            self.copy_from(weights)

    @classmethod
    def from_message(
        cls, definition: Message, phase: str, level: int = 0, stages: Sequence[str] = (), where: str = ""
    ) -> Net:
        """A net from a ``NetParameter``.

        Args:
            definition: The ``NetParameter`` of any generation.
            phase: ``TRAIN`` or ``TEST``.
            level: The level of Caffe's ``NetState``.
            stages: Its stages.
            where: The file, for messages.
        """
        net = cls.__new__(cls)
        net._build(definition, phase, level, stages, where or definition.where)
        return net

    # -- making it ---------------------------------------------------------------------------------

    def _build(self, definition: Message, phase: str, level: int, stages: Sequence[str], where: str) -> None:
        self._phase, self.where = phase, where
        self._wiring: Wiring = wire(definition, phase, level, stages)
        self._blobs = [Blob() for _ in self._wiring.blob_names]
        self._before_forward: list[Hook] = []
        self._after_forward: list[Hook] = []
        self._before_backward: list[Hook] = []
        self._after_backward: list[Hook] = []
        self.nodes: list[Node] = []
        self._shared: dict[str, Blob] = {}
        for index, layer in enumerate(self._wiring.definitions):
            self.nodes.append(self._node(index, layer))
        self.layers: list[Layer] = [node.layer for node in self.nodes]
        self._refuse_unknown_fields()
        mark_backward(self.nodes, self._wiring)
        self._set_loss_diffs()
        self._engines = Engines(self.nodes, self._wiring, phase, where)

    def _refuse_unknown_fields(self) -> None:
        """Refuse what nothing here reads, as Caffe does; layers in Python read what they like."""
        layers = tuple(node.typed for node in self.typed_nodes())
        known = Schema(self._wiring.name, layers, self._wiring.rest, sources=(self.where,))
        refuse_unknown_fields(known, "take it out of the prototxt if it does not matter")

    def _node(self, index: int, definition: Message) -> Node:
        bottoms = [self._blobs[number] for number in self._wiring.bottoms[index]]
        tops = [self._blobs[number] for number in self._wiring.tops[index]]
        node = make_node(definition, bottoms, tops, self._phase)
        node.setup()
        specs = definition.messages("param")
        if len(specs) > len(node.layer.blobs):
            raise ModelError(
                f"has {len(specs)} param for {len(node.layer.blobs)} parameters", where=f"{self.where}: {node.label}"
            )
        for spec, blob in zip(specs, node.layer.blobs, strict=False):
            if spec.text("name"):
                self._share_param(node, spec, blob)
        return node

    def _share_param(self, node: Node, spec: Message, blob: Blob) -> None:
        """Let the parameters of one name be one. Source: ``Net::AppendParam``."""
        owner = self._shared.setdefault(spec.text("name"), blob)
        if owner is blob:
            return
        permissive = spec.text("share_mode", "STRICT") in ("PERMISSIVE", "1")
        if owner.count != blob.count if permissive else owner.dims != blob.dims:
            raise ModelError(
                f"shares parameter '{spec.text('name')}' of {times(owner.dims)}, its own is {times(blob.dims)}",
                where=f"{self.where}: {node.label}",
            )
        blob.share(owner)

    def _set_loss_diffs(self) -> None:
        """The gradient of the loss with respect to itself. Source: ``Layer::SetLossWeights``."""
        for node in self.nodes:
            for top, weight in zip(node.tops, node.loss_weights, strict=False):
                if weight:
                    top.gradient()[...] = weight

    # -- the passes --------------------------------------------------------------------------------

    def _forward(self, start: int, end: int) -> float:
        """Run the layers ``start`` to ``end``; returns their loss. Source: ``Net::ForwardFromTo``."""
        self._check_range(start, end)
        if not (self._before_forward or self._after_forward):
            self._engines.forward(start, end)
            return sum(map(self._loss, range(start, end + 1)))
        total = 0.0
        for index in range(start, end + 1):
            _call(self._before_forward, index)
            self._engines.forward(index, index, alone=True)
            total += self._loss(index)
            _call(self._after_forward, index)
        return total

    def _loss(self, index: int) -> float:
        node = self.nodes[index]
        weighted = [(top, weight) for top, weight in zip(node.tops, node.loss_weights, strict=False) if weight]
        return float(sum(np.dot(top.values().reshape(-1), top.gradient().reshape(-1)) for top, _ in weighted))

    def _backward(self, start: int, end: int) -> None:
        """Go back through the layers ``start`` down to ``end``. Source: ``Net::BackwardFromTo``."""
        self._check_range(end, start)
        for index in range(start, end - 1, -1):
            _call(self._before_backward, index)
            if self.nodes[index].need_backward:
                self._engines.backward(index)
            _call(self._after_backward, index)

    def _check_range(self, first: int, last: int) -> None:
        if first < 0 or last >= len(self.nodes):
            raise UsageError(f"layers {first} to {last}: the net has {len(self.nodes)}", where=self.where)

    def reshape(self) -> None:
        """Give all blobs the shapes that follow from those of the inputs.

        Raises:
            ModelError: A layer cannot take what it is fed.
        """
        for node in self.nodes:
            node.reshape()

    def clear_param_diffs(self) -> None:
        """Set the gradients of all parameters to zero."""
        for blob in self.learnable_params:
            blob.gradient()[...] = 0

    def before_forward(self, hook: Hook) -> None:
        """Have ``hook(index)`` called before each layer's forward computation."""
        self._before_forward.append(hook)

    def after_forward(self, hook: Hook) -> None:
        """Have ``hook(index)`` called after each layer's forward computation."""
        self._after_forward.append(hook)

    def before_backward(self, hook: Hook) -> None:
        """Have ``hook(index)`` called before each layer's backward computation."""
        self._before_backward.append(hook)

    def after_backward(self, hook: Hook) -> None:
        """Have ``hook(index)`` called after each layer's backward computation."""
        self._after_backward.append(hook)

    # -- what it has -------------------------------------------------------------------------------

    @property
    def phase(self) -> int:
        """``caffe.TRAIN`` or ``caffe.TEST``."""
        return PHASES.index(self._phase)

    @property
    def name(self) -> str:
        """The net's name; scripts may give it another one."""
        return self._wiring.name

    @name.setter
    def name(self, value: str) -> None:
        self._wiring.name = value

    @property
    def _blob_names(self) -> list[str]:
        return self._wiring.blob_names

    @property
    def _layer_names(self) -> list[str]:
        return [node.name for node in self.nodes]

    @functools.cached_property
    def _inputs(self) -> list[int]:
        pairs = zip(self.nodes, self._wiring.tops, strict=True)
        return [number for node, tops in pairs if isinstance(node, InputNode) for number in tops]

    @property
    def _outputs(self) -> list[int]:
        return self._wiring.outputs

    @functools.cached_property
    def _blob_loss_weights(self) -> list[float]:
        weights = [0.0] * len(self._blobs)
        for node, tops in zip(self.nodes, self._wiring.tops, strict=True):
            for number, weight in zip(tops, node.loss_weights, strict=False):
                weights[number] = weight
        return weights

    def _top_ids(self, index: int) -> list[int]:
        return self._wiring.tops[index]

    def _bottom_ids(self, index: int) -> list[int]:
        return self._wiring.bottoms[index]

    def learnable(self) -> Iterator[tuple[Blob, Message]]:
        """Each parameter once, with the ``ParamSpec`` of the first layer that has it."""
        seen: set[int] = set()
        for node in self.nodes:
            specs = node.definition.messages("param")
            for place, blob in enumerate(node.layer.blobs):
                if id(blob.data_memory) not in seen:
                    seen.add(id(blob.data_memory))
                    yield blob, specs[place] if place < len(specs) else Message()

    @property
    def learnable_params(self) -> list[Blob]:
        """Each parameter once: what a solver updates. Source: ``Net::learnable_params``."""
        return [blob for blob, _ in self.learnable()]

    @property
    def params_lr(self) -> list[float]:
        """The factor on the learning rate of each of :attr:`learnable_params`."""
        return [_number(spec, "lr_mult") for _, spec in self.learnable()]

    @property
    def params_weight_decay(self) -> list[float]:
        """The factor on the weight decay of each of :attr:`learnable_params`."""
        return [_number(spec, "decay_mult") for _, spec in self.learnable()]

    def typed_nodes(self) -> list[TypedNode]:
        """The layers of types that are known here; those in Python are left out."""
        return [node for node in self.nodes if isinstance(node, TypedNode)]


def _arguments(*args: Any, **keywords: Any) -> tuple[int, int, Sequence[str], Any]:
    """Phase, level, stages and weights from the arguments of either form."""
    if len(args) == 2 and not keywords and not isinstance(args[0], int):
        return _phase(args[1]), 0, (), args[0]
    known = ("phase", "level", "stages", "weights")
    if len(args) > len(known) or not keywords.keys() <= set(known[len(args) :]):
        raise UsageError(f"unexpected arguments {args} {keywords}", where="Net", hint="Net(prototxt, phase, weights=)")
    given = dict(zip(known, args, strict=False)) | keywords
    if "phase" not in given:
        raise UsageError("there is no phase", where="Net", hint="Net(prototxt, caffe.TEST)")
    return _phase(given["phase"]), given.get("level", 0), tuple(given.get("stages") or ()), given.get("weights")


def _phase(value: Any) -> int:
    if value not in (0, 1):
        raise UsageError(f"phase is {value!r}", expected="caffe.TRAIN or caffe.TEST", where="Net")
    return int(value)


def _path(file: Any) -> Path:
    path = Path(os.fsdecode(file))
    if not path.is_file():
        raise MissingFileError("does not exist" if not path.exists() else "is no file", where=str(path))
    return path


def _call(hooks: Sequence[Hook], index: int) -> None:
    for hook in hooks:
        hook(index)


def _number(spec: Message, name: str) -> float:
    value = spec.get(name, 1.0)
    return float(value) if isinstance(value, (int, float)) else 1.0
