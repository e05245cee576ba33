"""Lowering a net to a graph: every layer in turn emits its nodes, then values get their names."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bridge.errors import UnsupportedLayerError, UsageError
from bridge.files.inspection import inspect_net
from bridge.onnx_export.builder import GraphBuilder
from bridge.onnx_export.dims import Dims, Extent, NeedsStaticError, input_dims, label, probe
from bridge.onnx_export.fuse import clean_up
from bridge.onnx_export.opening import fixed_extents, open_extents, open_sides
from bridge.onnx_export.preprocess import Preprocess
from bridge.schema import Layer, Net, Opaque

NODE = 60_000
"""So many multiply-adds take a runtime as long as a node that computes next to nothing, some 2 microseconds."""
SLOWER = 0.05
"""The part of a model's time that open sides may cost where nobody asked for them."""


@dataclass
class Graph:
    """A lowered net, ready to be written as ONNX.

    Attributes:
        builder: Its nodes and initializers.
        inputs, outputs: Extents of each by name, numbers or names of open extents.
        tops: For each layer of the net, the names of its tops' values ("" where none is left).
        values: Extents of the values in between.
        notes: Remarks for the user, one line each.
        blobs: The blob that an output stands for, where it could not have the blob's name.
        half: The values that are float16.
        prepared: The value that the net reads in place of an input that is preprocessed.
        bytes: The inputs that take 8-bit values.
    """

    builder: GraphBuilder
    inputs: dict[str, list[Extent]]
    outputs: dict[str, list[Extent]]
    tops: list[tuple[str, ...]]
    values: dict[str, list[Extent]]
    notes: list[str] = field(default_factory=list)
    blobs: dict[str, str] = field(default_factory=dict)
    half: frozenset[str] = frozenset()
    prepared: dict[str, str] = field(default_factory=dict)
    bytes: frozenset[str] = frozenset()


def lower(
    net: Net,
    *,
    opset: int,
    inputs: Mapping[str, Sequence[Extent]] | None = None,
    dynamic_batch: bool = True,
    dynamic_sides: bool = True,
    every_top: bool = False,
    allow_custom: bool = False,
    preprocess: Preprocess | None = None,
) -> Graph:
    """Lower a net to ONNX nodes.

    Args:
        net: The net, in its form for inference.
        opset: Version of the default operator set.
        inputs: Extents of input blobs; a name instead of a number leaves that extent open.
        dynamic_batch: Leave the first extent of every input open where the net allows it.
        dynamic_sides: Leave height and width of images open where the net allows it; needs ``dynamic_batch``.
        every_top: Make every value that a layer writes an output, as well as the net's own.
        allow_custom: Let what standard ONNX cannot say become nodes of a domain of ours.
        preprocess: What to do to the image input first.

    Raises:
        UnsupportedLayerError: Layers that cannot be expressed; names all of them.
        ModelError: The net does not fit together.
        UsageError: ``inputs`` names a blob that is no input, or an extent cannot be open.
    """
    _refuse(net, allow_custom)
    shapes, sizes, asked = open_extents(net, inputs or {}, dynamic_batch)
    sides = open_sides(net, shapes, sizes, inputs or {}) if dynamic_batch and dynamic_sides else set()
    if preprocess:
        shapes = preprocess.resized(shapes, (inputs or {}).keys(), net.where)
        sizes = {symbol: size for symbol, size in sizes.items() if any(symbol in shape for shape in shapes.values())}
    attempt = _Attempt(net, asked, sides, opset, every_top, allow_custom, preprocess)
    graph = attempt.run(shapes, sizes)
    left = sides & sizes.keys()
    own = {name: sizes[name] for name in left if any(name in shape for shape in graph.inputs.values())}
    if not own:
        return graph
    fixed = attempt.run(fixed_extents(shapes, own), {name: size for name, size in sizes.items() if name not in own})
    more = len(graph.builder.nodes) - len(fixed.builder.nodes)
    if more * NODE <= SLOWER * (inspect_net(net, values=False)["totals"]["multiply_adds"] or 0):
        return graph
    texts = [f"{name}={label(shape, ',')}" for name, shape in graph.inputs.items()]
    opened = " ".join(f"--input {shlex.quote(text)}" for text in texts)
    fixed.notes.append(
        f"height and width are fixed: open, the model has {more} nodes more, which may take more than {SLOWER:.0%} of "
        f"its time; {opened} opens them"
    )
    return fixed


@dataclass
class _Attempt:
    """Lowers a net with some extents open, and fixes those that it does not allow to be.

    Attributes:
        asked: Open extents that the user asked for by name.
        sides: Open extents that are tried without being asked for, and fixed without a word.
    """

    net: Net
    asked: set[str]
    sides: set[str]
    opset: int
    every_top: bool
    allow_custom: bool
    preprocess: Preprocess | None

    def run(self, shapes: dict[str, list[Extent]], sizes: dict[str, int]) -> Graph:
        sizes, notes = dict(sizes), list[str]()
        while True:
            try:
                dims = probe(self.net, shapes, sizes)
                builder = GraphBuilder(self.opset, allow_custom=self.allow_custom)
                lowering = _Lowering(self.net, builder, shapes, sizes, dims, self.every_top)
                return lowering.run(notes, self.preprocess)
            except NeedsStaticError as error:
                notes += self._told(sorted(error.symbols), sizes)
                shapes = fixed_extents(shapes, {symbol: sizes.pop(symbol) for symbol in error.symbols})

    def _told(self, symbols: Sequence[str], sizes: Mapping[str, int]) -> Iterator[str]:
        """A note for each extent that is to be fixed; an error for one that cannot be."""
        for symbol in symbols:
            if symbol not in sizes:
                raise UnsupportedLayerError(
                    f"a layer needs the extent '{symbol}' as a number, and only the values tell it",
                    where=self.net.where,
                )
            if symbol in self.asked:
                raise UsageError(
                    f"the extent '{symbol}' cannot be left open: the net works for {sizes[symbol]} only",
                    where=self.net.where,
                    hint="give it as a number with --input",
                )
            if symbol not in self.sides:  # most nets have an image's sides fixed, which the input's extents show
                yield f"the extent '{symbol}' is fixed at {sizes[symbol]}: the net does not allow it to be open"


def _refuse(net: Net, allow_custom: bool) -> None:
    """One error for all layers that cannot be lowered at all."""
    names = dict.fromkeys(name for layer in net.layers for name in (layer.name, *layer.bottoms, *layer.tops))
    if foreign := [name for name in names if not _is_utf8(name)]:
        what = f"{len(foreign)} names of layers and blobs are not UTF-8, which ONNX demands, the first '{foreign[0]}'"
        raise UnsupportedLayerError(what, where=net.where, hint="give them other names in prototxt and weights")
    if any(map(_without_weights, net.layers)) and not any(layer.blobs for layer in net.layers):
        hint = "a prototxt alone cannot be exported: give the file of weights as well"
        raise UnsupportedLayerError("holds no weights", where=net.where, hint=hint)
    problems = {index: _problem(layer, allow_custom) for index, layer in enumerate(net.layers)}
    broken = {index: f"{net.layers[index].label}: {reason}" for index, reason in problems.items() if reason}
    if broken:
        more = "" if len(broken) == 1 else f"{len(broken)} layers cannot be exported: "
        unfilled = any(layer.uncovered for layer in net.layers)
        hint = _unfilled_hint(net) if unfilled else before_hint(net, broken)
        raise UnsupportedLayerError(more + "; ".join(broken.values()), where=net.where, hint=hint)


def _unfilled_hint(net: Net) -> str:
    layer = next(layer for layer in net.layers if layer.uncovered)
    values = ", ".join(f"{role}=..." for role in layer.roles(0))
    by_hand = f" (in Python, net.with_blobs({layer.name!r}, {values}) sets values by hand)" if values else ""
    return f"do the prototxt and the weights belong together?{by_hand}"


_PLUGIN = "--plugin FILE.py says what the layer computes, see docs/plugins.md"


def before_hint(net: Net, layers: Iterable[int]) -> str:
    """How to export what lies before some layers, and how to say what a layer of an unknown type computes.

    Args:
        net: The net.
        layers: Indices of the layers.
    """
    layers = list(layers)
    unknown = [layer for index in layers if isinstance(layer := net.layers[index], Opaque) and not layer.known]
    hints = [_PLUGIN] if unknown else []
    names = net.flow.outputs_without(layers)
    if not names:
        return "".join(hints)
    options = [",".join(names)] if not any("," in name for name in names) else names
    given = " ".join(f"--output {shlex.quote(option)}" for option in options)
    return "; ".join([f"everything before it can be exported with {given}", *hints])


def _is_utf8(name: str) -> bool:
    """Whether a name's bytes, kept as they are in the file, are UTF-8."""
    return not any("\udc80" <= char <= "\udcff" for char in name) if not name.isascii() else True


def _problem(layer: Layer, allow_custom: bool) -> str:
    if layer.uncovered:
        return layer.uncovered
    if _without_weights(layer):
        return "it has no weights"
    return "" if layer.has_onnx or (allow_custom and type(layer).infer is not Layer.infer) else layer.reason()


def _without_weights(layer: Layer) -> bool:
    return not layer.blobs and not layer.uncovered and bool(layer.roles(0))


class _Lowering:
    """One attempt at lowering, for a given choice of open extents."""

    def __init__(
        self,
        net: Net,
        builder: GraphBuilder,
        shapes: dict[str, list[Extent]],
        sizes: dict[str, int],
        dims: list[tuple[Dims, ...]],
        every_top: bool,
    ) -> None:
        self.net, self.shapes, self.sizes, self.dims, self.every_top = net, shapes, sizes, dims, every_top
        self.g = builder
        blobs = {name for layer in net.layers for name in (*layer.bottoms, *layer.tops)}
        for name in sorted(blobs):
            self.g.unique(name)  # reserved: a blob's name is its tensor's
        self.values: dict[str, str] = {}
        self.tops: list[tuple[str, ...]] = []
        self.prepared: dict[str, str] = {}
        self.bytes: frozenset[str] = frozenset()

    def run(self, notes: list[str], preprocess: Preprocess | None) -> Graph:
        for name, shape in self.shapes.items():
            self.values[name] = name
            self.g.shapes[name] = input_dims(shape, self.sizes)
        if preprocess:
            self._prepare(preprocess)
        missing: dict[int, str] = {}
        for index, layer in enumerate(self.net.layers):
            try:
                self.tops.append(self._layer(index, layer))
            except UnsupportedLayerError as error:
                missing[index] = error.text
                self.tops.append(tuple(layer.tops))
                for top, dims in zip(layer.tops, self.dims[index], strict=False):
                    self.values[top] = top
                    self.g.shapes[top] = dims
        if missing:
            hint = before_hint(self.net, missing)
            raise UnsupportedLayerError("; ".join(missing.values()), where=self.net.where, hint=hint)
        return self._finish(notes)

    def _prepare(self, preprocess: Preprocess) -> None:
        """Put nodes between the image that the model takes and the net's input."""
        image = preprocess.image_of(self.shapes, self.net.where)
        dims = self.g.shapes[image]
        names = [side if side not in self.sizes else f"{image}_{side}" for side in ("height", "width")]
        # an image of another size than the net's, so that the check of the export resizes
        sizes = {**self.sizes, **{name: n + n // 2 + 1 for name, n in zip(names, dims.extents[2:], strict=True)}}
        extents = preprocess.model_extents(self.shapes[image], *names)
        self.values[image] = self.prepared[image] = preprocess.emit(self.g, image, dims)
        self.g.shapes[self.values[image]] = dims
        self.g.shapes[image] = input_dims(extents, sizes)
        self.shapes = {**self.shapes, image: extents}
        self.bytes = frozenset([image] if preprocess.uint8 else [])

    def _layer(self, index: int, layer: Layer) -> tuple[str, ...]:
        if layer.is_input:
            return tuple(self.values[top] for top in layer.tops)
        self.g.begin(index, layer)
        bottoms = [self.values[bottom] for bottom in layer.bottoms]
        if layer.has_onnx:
            made = layer.to_onnx(self.g, *bottoms)
        else:
            made = self.g.custom(layer, *bottoms, reason=layer.reason())
        values = (made,) if isinstance(made, str) else tuple(made)
        for top, value, dims in zip(layer.tops, values, self.dims[index], strict=False):
            self.values[top] = value
            self.g.shapes[value] = dims
        return values

    def _finish(self, notes: list[str]) -> Graph:
        outputs = {name: self.values[name] for name in self.net.outputs if name in self.values}
        first = {value: name for name, value in reversed(outputs.items())}
        outputs = {name: self._own_value(name, value, first[value]) for name, value in outputs.items()}
        hidden = [name for name, value in outputs.items() if name in self.shapes and value != name]
        renamed = {name: self._other_name(name) for name in hidden}
        outputs = {renamed.get(name, name): value for name, value in outputs.items()}
        keep = set(outputs.values())
        if self.every_top:
            keep |= {value for values in self.tops for value in values}
        clean_up(self.g, keep)
        rename = self._names(outputs)
        return Graph(
            builder=self.g,
            inputs=self.shapes,
            outputs=self._outputs(outputs, rename),
            tops=[tuple(rename.get(value, value) for value in values) for values in self.tops],
            values={
                rename.get(value, value): dims.labels(rename.get(value, value)) for value, dims in self.g.shapes.items()
            },
            notes=[*notes, *self.g.notes],
            blobs={other: name for name, other in renamed.items()},
            prepared=self.prepared,
            bytes=self.bytes,
        )

    def _other_name(self, name: str) -> str:
        """A new name for an output that has the name of an input; a graph cannot have both."""
        other = self.g.unique(f"{name}_out")
        self.g.notes.append(f"output '{name}' is called '{other}', as the input has that name")
        return other

    def _own_value(self, name: str, value: str, first: str) -> str:
        """An output needs a value of its own: not an input's, and not that of the ``first`` output which has it."""
        if value == name or (value not in self.shapes and value not in self.g.initializers and first == name):
            return value
        self.g.begin(len(self.net.layers), None)
        (twin,) = self.g.op("Identity", value)
        self.g.shapes[twin] = self.g.shapes[value]
        return twin

    def _outputs(self, outputs: dict[str, str], rename: dict[str, str]) -> dict[str, list[Extent]]:
        named = {name: self.g.shapes[value].labels(name) for name, value in outputs.items()}
        if self.every_top:
            for values in self.tops:
                for value in values:
                    name = rename.get(value, value)
                    if name not in self.shapes:
                        named.setdefault(name, self.g.shapes[value].labels(name))
        return named

    def _names(self, outputs: dict[str, str]) -> dict[str, str]:
        """Give each blob's last value the blob's name, and rename it everywhere."""
        rename = {value: name for name, value in outputs.items()}
        given = {*outputs, *self.shapes}  # each name of ``self.values`` comes once, so those stay as they are
        for name, value in self.values.items():
            free = value not in rename and value not in self.shapes and value not in self.g.initializers
            if free and name not in given:
                rename[value] = name
        for node in self.g.nodes:
            node.inputs = [rename.get(name, name) for name in node.inputs]
            node.outputs = [rename.get(name, name) for name in node.outputs]
        return rename
