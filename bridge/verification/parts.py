"""Which inputs, outputs, layers and arrays two sides have: what only one has is a difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bridge.errors import nearest
from bridge.schema import Layer, Net, times
from bridge.verification.inputs import Recorded
from bridge.verification.results import DIFFERENT, SKIPPED, PartResult, PartsResult

ALLOWED = "--subset allows that only one side has it"


def compare_nets(a: Net, b: Net, names: tuple[str, str], *, subset: bool = False) -> PartsResult:
    """Compare the declared inputs, the layers and the outputs of two nets.

    Layers that pass on their bottom unchanged (Split, Dropout) may be on one side only.

    Args:
        a: One net, in its form for inference.
        b: The other.
        names: What to call the sides.
        subset: Whether it is no difference if only one side has a part.
    """
    return PartsResult(
        *names,
        (
            *_named("input", a.inputs, b.inputs, names, subset),
            *_inputs(a, b),
            *_named("layer", _computing(a), _computing(b), names, subset),
            *_named("output", dict.fromkeys(a.outputs), dict.fromkeys(b.outputs), names, subset),
            *_order("output", a.outputs, b.outputs),
        ),
    )


def compare_outputs(
    wanted: Sequence[str], declared: Sequence[str], names: tuple[str, str], *, subset: bool = False
) -> Iterator[PartResult]:
    """Compare the outputs that a net has with those that a graph declares: each name once, in the same order."""
    yield from _named("output", dict.fromkeys(wanted), dict.fromkeys(declared), names, subset)
    twice = {name for name in declared if declared.count(name) > 1} if len(set(declared)) < len(declared) else set()
    for name in sorted(twice):
        yield PartResult("output", name, DIFFERENT, f"{names[1]} declares it {declared.count(name)} times")
    yield from _order("output", wanted, tuple(dict.fromkeys(declared)))


def compare_keys(recorded: Recorded, net: Net, whole: Net, *, subset: bool = False) -> PartsResult:
    """Compare the arrays of a recording with the net: each must name a blob that it has.

    Args:
        recorded: The recording.
        net: The net that is run.
        whole: The net before the layers were cut that only training needs.
        subset: Whether arrays that belong to no blob are no difference.
    """
    return PartsResult(whole.where, recorded.name, tuple(_keys(recorded, net, whole, subset)))


def _keys(recorded: Recorded, net: Net, whole: Net, subset: bool) -> Iterator[PartResult]:
    ours, all_keys = set(_known_keys(net)), set(_known_keys(whole))
    for key in recorded.keys:
        if key in ours:
            yield PartResult("array", key)
        elif ":" not in key and key not in net.flow.last:
            yield PartResult("array", key, SKIPPED, "its key begins with none of in:, out:, blob: and top:")
        elif key in all_keys:
            yield PartResult("array", key, SKIPPED, "only training needs it")
        elif subset:
            yield PartResult("array", key, SKIPPED, ALLOWED)
        else:
            hint = nearest(key, sorted(ours))
            yield PartResult("array", key, DIFFERENT, "it names no blob of the net" + (f"; {hint}" if hint else ""))


def _known_keys(net: Net) -> Iterator[str]:
    """Every key that a recording of the net may have."""
    blobs = dict.fromkeys([*net.inputs, *(top for layer in net.layers for top in layer.tops)])
    yield from (f"in:{blob}" for blob in blobs)
    yield from (f"{kind}:{blob}" for kind in ("out", "blob") for blob in blobs)
    yield from (f"top:{layer.name}:{top}" for layer in net.layers for top in layer.tops)


def _computing(net: Net) -> dict[str, Layer]:
    """The layers that compute something, by name."""
    return {layer.name: layer for layer in net.layers if not layer.is_input and not layer.copies}


def _named(
    kind: str, a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str], subset: bool
) -> Iterator[PartResult]:
    """Each name of either side: the same if both have it."""
    for name in dict.fromkeys([*a, *b]):
        if name in a and name in b:
            yield PartResult(kind, name)
        elif subset:
            yield PartResult(kind, name, SKIPPED, ALLOWED)
        else:
            yield PartResult(kind, name, DIFFERENT, f"only {names[0] if name in a else names[1]} has it")


def _inputs(a: Net, b: Net) -> Iterator[PartResult]:
    """Inputs whose declared extents differ, the batch aside, which Caffe takes from what it is fed; and their order."""
    for name, shape in a.inputs.items():
        other = b.inputs.get(name)
        if shape is None or other is None or shape == other:
            continue
        axis = next((layer.batch_axis(layer.bottoms.index(name)) for layer in a if name in layer.bottoms), 0)
        pair = [(*extents[:axis], *extents[axis + 1 :]) for extents in (shape, other)]
        if pair[0] != pair[1] or len(shape) != len(other):
            yield PartResult("input", name, DIFFERENT, f"its extents are {times(shape)} against {times(other)}")
    yield from _order("input", tuple(a.inputs), tuple(b.inputs))


def _order(kind: str, a: Sequence[str], b: Sequence[str]) -> Iterator[PartResult]:
    """A difference if both sides have the same names in another order."""
    if set(a) == set(b) and tuple(a) != tuple(b):
        yield PartResult(kind, a[0], DIFFERENT, f"the order is {', '.join(a)} against {', '.join(b)}")
