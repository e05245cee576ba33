"""The inputs that an ONNX graph declares against those of a net, and what each is fed with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bridge.errors import ModelError
from bridge.schema import Net, times
from bridge.verification.parts import ALLOWED
from bridge.verification.results import DIFFERENT, SKIPPED, PartResult

if TYPE_CHECKING:
    from bridge.onnx_export.dims import Extent
    from bridge.onnx_export.inside import Inside


class PairedInputs(NamedTuple):
    """How a graph's inputs and a net's belong together.

    Attributes:
        parts: Each declared input of either side.
        fed: The graph's name of each input, the net's, and its values; empty if the graph cannot be fed.
        possible: Whether the graph can be fed.
        by_name: Whether all pairs have one name.
    """

    parts: tuple[PartResult, ...]
    fed: tuple[tuple[str, str, np.ndarray], ...]
    possible: bool
    by_name: bool


def pair_inputs(
    inside: Inside, net: Net, given: Mapping[str, np.ndarray], path: str, *, image: str = "", subset: bool = False
) -> PairedInputs:
    """Compare the declared inputs: names, order, extents and types; inputs of other names are paired in their order.

    Args:
        inside: The graph.
        net: The net.
        given: The values of each input of the net.
        path: The graph's file.
        image: The input that the graph prepares itself, from pixels.
        subset: Whether a name that only one side has is no difference.

    Raises:
        ModelError: The graph takes the extents that the net declares, and the values have others.
    """
    pairs = _pairs(inside.inputs, list(given))
    unlike = [*_extents(inside, net, pairs, given, path, image), *_types(inside, pairs, given, path)]
    parts = [*_names(inside.inputs, net, pairs, path, subset), *unlike]
    fed = tuple((name, own, given[own]) for name, own in pairs.items())
    whole = set(pairs) == set(inside.inputs) and not unlike
    named = {part.name for part in parts}
    same = [PartResult("input", own) for own in pairs.values() if own not in named]
    return PairedInputs((*same, *parts), fed if whole else (), whole, all(name == own for name, own in pairs.items()))


def _pairs(theirs: Mapping[str, Sequence[Extent] | None], ours: Sequence[str]) -> dict[str, str]:
    """The graph's name of each input -> the net's: by name, and those that are left by their order."""
    pairs = {name: name for name in theirs if name in ours}
    left = [name for name in ours if name not in pairs], [name for name in theirs if name not in pairs]
    if len(left[0]) == len(left[1]):
        pairs.update(zip(left[1], left[0], strict=True))
    return {name: pairs[name] for name in theirs if name in pairs}


def _names(
    theirs: Mapping[str, Sequence[Extent] | None], net: Net, pairs: Mapping[str, str], path: str, subset: bool
) -> Iterator[PartResult]:
    """Inputs of one side alone, and those in another order."""
    status, allowed = (SKIPPED, f"; {ALLOWED}") if subset else (DIFFERENT, "")
    for own in net.inputs:
        if own not in theirs:
            other = next((name for name, known in pairs.items() if known == own), None)
            why = f"{path} does not take it" if other is None else f"{path} calls it '{other}'"
            yield PartResult("input", own, status, why + allowed)
    for name in theirs:
        if name not in pairs:
            yield PartResult("input", name, DIFFERENT, f"only {path} takes it, so its graph cannot be fed")
    order = [pairs[name] for name in theirs if name in pairs]
    if order != [name for name in net.inputs if name in order]:
        why = f"the order is {', '.join(net.inputs)} against {', '.join(theirs)}"
        yield PartResult("input", next(iter(net.inputs)), DIFFERENT, why)


def _extents(
    inside: Inside, net: Net, pairs: Mapping[str, str], given: Mapping[str, np.ndarray], path: str, image: str
) -> Iterator[PartResult]:
    from bridge.onnx_export.dims import fits, label

    for name, own in pairs.items():
        extents, shape, declared = inside.inputs[name], given[own].shape, net.inputs.get(own)
        if extents is None or fits(shape, extents, {}):
            continue
        if own != image and declared is not None and fits(declared, extents, {}):
            message = f"input '{own}' is {label(extents)} in the graph, and was fed with {times(shape)}"
            raise ModelError(message, where=path, hint="--input sets the extents of inputs")
        hint = f"; --input {own}={label(extents, ',')} compares at those" if len(extents) == len(shape) else ""
        yield PartResult("input", own, DIFFERENT, f"its extents are {times(shape)} against {label(extents)}{hint}")


def _types(
    inside: Inside, pairs: Mapping[str, str], given: Mapping[str, np.ndarray], path: str
) -> Iterator[PartResult]:
    """Inputs of another type than the values, which are float32 or, before a preprocessing, 8-bit pixels."""
    for name, own in pairs.items():
        wanted = "uint8" if given[own].dtype == np.uint8 else "float32"
        found = inside.types[name]
        if found not in ("", wanted):
            yield PartResult("input", own, DIFFERENT, f"its type is {found} in {path}, not {wanted}")
