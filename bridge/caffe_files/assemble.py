"""From what a reader delivers, and perhaps a prototxt, to a typed net.

The rules are Caffe's own: which layers a phase has (``Net::FilterNet``), which stored
blobs a layer gets (``Net::CopyTrainedLayersFrom``: by layer name), and which layers
share a parameter (``Net::AppendParam``: by parameter name).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from bridge.caffe_files.fields import field_notes
from bridge.caffe_files.structure import check_definition, check_layers, check_tops
from bridge.caffe_files.unstored import fill_unstored
from bridge.caffe_files.upgrade import crop_notes, upgrade_net
from bridge.errors import ModelError, nearest
from bridge.layers import build_layer
from bridge.layers.batch_norm import notes_on_statistics, read_zero_scale_factors
from bridge.schema import Blob, Layer, Net, Opaque, RawLayer, RawNet
from bridge.schema.message import Message

_HINTED = 20
"""Of so many stored layers that a prototxt does not have, the nearest names are looked for: that takes time."""


def assemble(
    raw: RawNet | None,
    prototxt: Message | None = None,
    *,
    phase: str = "TEST",
    level: int = 0,
    stages: Sequence[str] = (),
    zero_scale_factor: str = "bvlc",
    allow_unknown_fields: bool = False,
    sources: Sequence[str] = (),
) -> Net:
    """Build a net.

    Args:
        raw: The stored layers; none for a definition alone.
        prototxt: The net's definition as parsed; without it the one in ``raw`` is used.
        phase: ``TEST`` or ``TRAIN``, for the prototxt's ``include`` and ``exclude`` rules.
        level: The level of Caffe's ``NetState``.
        stages: Its stages.
        zero_scale_factor: ``bvlc`` or ``nvcaffe``: how to read a BatchNorm whose scale factor is 0
            beside other statistics, see :func:`bridge.layers.batch_norm.read_zero_scale_factors`.
        allow_unknown_fields: Let fields pass that nothing reads and that may change a result; else an export,
            a chain and a check refuse the net.
        sources: The files, for messages.

    Returns:
        The net. What could not be matched is told in its ``notes``.

    Raises:
        FormatError: The prototxt is no net, or has what Caffe refuses: two layers that write one blob.
        ModelError: The rules of a layer contradict each other.
        UsageError: ``zero_scale_factor`` is neither of the two.
    """
    stored = raw.layers if raw else ()
    if prototxt is None:
        rest = raw.definition if raw else Message()
        definitions = [layer.definition for layer in stored]
        layers = [(layer.definition, layer.blobs, layer.uncovered) for layer in stored]
    else:
        check_definition(prototxt)
        rest, definitions = upgrade_net(prototxt)
        check_layers(definitions)
        kept = _of_phase(rest, definitions, phase, level, stages)
        by_name = _by_name(stored)
        layers = [(definition, *by_name.get(definition.text("name"), ((), ""))) for definition in kept]
    shared = _shared_parameters(layers)
    built = tuple(
        _complete(build_layer(definition, _with_shared(definition, blobs, shared), uncovered), raw)
        for definition, blobs, uncovered in layers
    )
    net = Net(
        name=rest.text("name") or (raw.name if raw else ""),
        layers=built,
        definition=rest,
        phase=phase,
        sources=tuple(sources) or ((raw.source,) if raw else ()),
        reader=raw.reader if raw else "",
        allow_unknown_fields=allow_unknown_fields,
        stages=() if prototxt is None else _unnamed_stages(definitions, _state(rest, phase, level, stages)[2]),
        shared={name: tuple(copies) for name, copies in shared.items() if len(copies) > 1},
    )
    if prototxt is not None:  # the weights of a file alone never depend on its wiring
        check_tops(net)
    notes = [*(raw.notes if raw else ()), *crop_notes(definitions)]
    if not built:
        others = f": its {len(definitions)} are for others" if definitions else ""
        notes.append(f"the net has no layers for phase {phase}{others}")
    notes += (unused := _unused(stored, net) if prototxt is not None else [])
    if net.stages:
        notes.append(f"the prototxt has layers for the stages {', '.join(net.stages)}, none of which is named: --stage")
    notes += field_notes(net) + notes_on_statistics(net, prototxt is not None) + _written_over(net)
    net = read_zero_scale_factors(net.replace(notes=tuple(notes)), zero_scale_factor)
    return net if raw is None or prototxt is None or unused else fill_unstored(net, stored)


def definitions_of(
    prototxt: Message, phase: str, level: int = 0, stages: Sequence[str] = ()
) -> tuple[Message, list[Message]]:
    """The fields of a net itself, and the definitions of the layers that it has for a phase.

    Args and Raises: as :func:`assemble`.
    """
    rest, definitions = upgrade_net(prototxt)
    return rest, _of_phase(rest, definitions, phase, level, stages)


def _of_phase(
    rest: Message, definitions: Sequence[Message], phase: str, level: int, stages: Sequence[str]
) -> list[Message]:
    state = _state(rest, phase, level, stages)
    return [definition for definition in definitions if _included(definition, *state)]


def _by_name(stored: Sequence[RawLayer]) -> dict[str, tuple[tuple[Blob, ...], str]]:
    """What is stored under each name: of several layers the last one that has blobs, else the first."""
    found: dict[str, tuple[tuple[Blob, ...], str]] = {}
    for layer in stored:
        if layer.blobs or layer.name not in found:
            found[layer.name] = layer.blobs, layer.uncovered
    return found


def _shared_parameters(layers: Sequence[tuple[Message, Sequence[Blob], str]]) -> dict[str, list[Blob]]:
    """Every stored copy of each named parameter, in order. Caffe's net ends up with the last."""
    shared: dict[str, list[Blob]] = {}
    for definition, blobs, _ in layers:
        for param, blob in zip(definition.messages("param"), blobs, strict=False):
            if param.text("name") and blob is not None:
                shared.setdefault(param.text("name"), []).append(blob)
    return shared


def _with_shared(definition: Message, blobs: Sequence[Blob], shared: dict[str, list[Blob]]) -> list[Blob]:
    """A layer's blobs, each named parameter replaced by the one that all its sharers have."""
    names = [param.text("name") for param in definition.messages("param")]
    result = []
    for index in range(max(len(blobs), len(names))):
        own = blobs[index] if index < len(blobs) else None
        copies = shared.get(names[index], []) if index < len(names) else []
        last = copies[-1] if copies else own
        if last is not None:
            result.append(last.reshaped(own.shape) if own is not None and own.size == last.size else last)
    return result


def _complete(layer: Layer, raw: RawNet | None) -> Layer:
    """Say so where a layer needs blobs and the weights have none for it, or have those of another type."""
    if raw is not None and isinstance(layer, Opaque) and layer.blobs:
        types = {stored.type for stored in raw.layers if stored.name == layer.name and stored.blobs}
        if types - {layer.type, ""}:
            return dataclasses.replace(
                layer, problem=f"{layer.problem}; they are stored for the type {', '.join(sorted(types))}"
            )
    if raw is None or layer.blobs or layer.uncovered:
        return layer
    if not layer.roles(0):
        return layer
    return layer.changed(uncovered=f"{raw.source or 'the weights file'} has no blobs for it")


def _unused(stored: Sequence[RawLayer], net: Net) -> list[str]:
    """A note for every stored layer with blobs that the prototxt does not have."""
    names = dict.fromkeys(layer.name for layer in net.layers)
    notes: list[str] = []
    for layer in stored:
        if layer.blobs and layer.name not in names:
            hint = nearest(layer.name, net.layer_names) if len(notes) < _HINTED else ""
            notes.append(
                f"the weights of layer '{layer.name}' ({layer.type}) are not used: the prototxt has no such layer"
                + (f"; {hint}" if hint else "")
            )
    return notes


def _unnamed_stages(definitions: Sequence[Message], named: frozenset[str]) -> tuple[str, ...]:
    """The stages that rules of layers ask for, if none of them is named."""
    rules = [rule for layer in definitions for kind in ("include", "exclude") for rule in layer.messages(kind)]
    wanted = dict.fromkeys(str(stage) for rule in rules for stage in rule.all("stage"))
    return tuple(wanted) if named.isdisjoint(wanted) else ()


def _written_over(net: Net) -> list[str]:
    """A note for each layer that reads, in Caffe, what another wrote over by working in place."""
    found, changed = overwritten(net.layers)
    notes = [_late(net.layers[index].label, blob, writer) for (index, blob), writer in found.items()]
    return notes + [_late("the net's output", blob, changed[blob]) for blob in net.outputs if blob in changed]


def overwritten(layers: Sequence[Layer]) -> tuple[dict[tuple[int, str], Layer], dict[str, Layer]]:
    """Which layers read, in Caffe, what another wrote over by working in place.

    Some layers' tops are their bottoms' memory in another shape. A layer that works in place
    on such a top changes the bottom too, for whoever reads it later.

    Returns:
        Index of the reader and blob -> the layer that wrote over it; blob -> that layer, behind the last layer.
    """
    holders: dict[str, set[str]] = {}  # blob -> all that lie in its memory
    changed: dict[str, Layer] = {}
    found: dict[tuple[int, str], Layer] = {}
    for index, layer in enumerate(layers):
        found.update(((index, bottom), changed[bottom]) for bottom in layer.bottoms if bottom in changed)
        for place, top in enumerate(layer.tops):
            if layer.bottoms[place : place + 1] != (top,):
                holders.get(top, set()).discard(top)
                holders[top] = (
                    holders.setdefault(layer.bottoms[0], {layer.bottoms[0]}) if layer.shares_memory else set()
                )
                holders[top].add(top)
                changed.pop(top, None)
            elif not layer.copies:
                changed.update((name, layer) for name in holders.get(top, ()) if name != top)
    return found, changed


def _late(reader: str, blob: str, writer: Layer) -> str:
    return f"{reader} takes blob '{blob}' as computed; in Caffe {writer.label} wrote over it, in place"


def _state(rest: Message, phase: str, level: int, stages: Sequence[str]) -> tuple[str, int, frozenset[str]]:
    """The NetState: what the caller says, over what the file's ``state`` says."""
    state = rest.message("state")
    given = state.get("level", 0)
    own_level = level or (given if isinstance(given, int) else 0)
    return phase, own_level, frozenset([*stages, *map(str, state.all("stage"))])


def _included(definition: Message, phase: str, level: int, stages: frozenset[str]) -> bool:
    include, exclude = definition.messages("include"), definition.messages("exclude")
    if include and exclude:
        raise ModelError(
            "has both include and exclude rules", expected="one kind", where=f"layer '{definition.text('name')}'"
        )
    rules = include or exclude
    met = any(_meets(rule, phase, level, stages) for rule in rules)
    return met if include else not met


def _meets(rule: Message, phase: str, level: int, stages: frozenset[str]) -> bool:
    """Source: ``Net::StateMeetsRule``."""
    wanted = {"0": "TRAIN", "1": "TEST"}.get(found := rule.text("phase", phase), found)
    low, high = _int(rule.get("min_level")), _int(rule.get("max_level"))
    return (
        wanted == phase
        and (low is None or level >= low)
        and (high is None or level <= high)
        and stages.issuperset(map(str, rule.all("stage")))
        and stages.isdisjoint(map(str, rule.all("not_stage")))
    )


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) else None
