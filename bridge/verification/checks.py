"""Consistency checks of one net, each a small function with a name.

A check yields findings; an ERROR says that the model cannot be right, a NOTE that a look
at it may be worthwhile. Register one with ``@check("name", "what it demands")``.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bridge.caffe_files.fields import unread_fields
from bridge.errors import BridgeError, Hints, UsageError, nearest
from bridge.layers import REGISTRY
from bridge.schema import Layer, Opaque, Shape, times
from bridge.schema.blob import MOST, too_large
from bridge.verification.compare import same_bits
from bridge.verification.results import ERROR, NOTE, Checked, Finding, plural
from bridge.verification.values import Values, block_groups, look
from bridge.verification.weights import Loaded

_Found = Iterator[tuple[str, str, str, str]]
"""severity, layer, message, hint"""


@dataclass(frozen=True)
class Check:
    """One line of the table: a name, what the check demands, and the function."""

    name: str
    demands: str
    function: Callable[[Subject], _Found]


CHECKS: dict[str, Check] = {}
"""Every check by name, in the order in which they run."""


def check(name: str, demands: str) -> Callable[[Callable[[Subject], _Found]], Callable[[Subject], _Found]]:
    """Register a check."""

    def register(function: Callable[[Subject], _Found]) -> Callable[[Subject], _Found]:
        CHECKS[name] = Check(name, demands, function)
        return function

    return register


class Subject:
    """A net with what several checks need of it, worked out once.

    Attributes:
        loaded: What the reader delivered, and the net.
        net: The net.
        shapes: Shapes of input blobs, where they are not to be the file's.
    """

    def __init__(self, loaded: Loaded, shapes: Mapping[str, Shape] | None = None) -> None:
        self.loaded, self.net, self.shapes = loaded, loaded.net, dict(shapes or {})

    @functools.cached_property
    def flow(self) -> list[tuple[Layer, list[Shape | None], BridgeError | None]]:
        """Each layer with the shapes of its bottoms, as far as known, and why it cannot take them."""
        known: dict[str, Shape | None] = {**self.net.inputs, **self.shapes}
        result: list[tuple[Layer, list[Shape | None], BridgeError | None]] = []
        for layer in self.net.layers:
            bottoms = [known.get(bottom) for bottom in layer.bottoms]
            tops, problem = _infer(layer, bottoms)
            result.append((layer, bottoms, problem))
            if not layer.is_input:
                known.update(dict.fromkeys(layer.tops))
                known.update(zip(layer.tops, tops, strict=False))
        return result

    @functools.cached_property
    def values(self) -> dict[tuple[str, str], Values]:
        """What the values of each blob are like; a parameter that layers share is looked at once."""
        seen: dict[int, Values] = {}
        found = {}
        for layer in self.net.layers:
            for role, blob in layer.blobs.entries():
                key = id(blob.origin)
                if key not in seen:
                    seen[key] = look(blob.numpy())
                found[layer.name, role] = seen[key]
        return found


def _infer(layer: Layer, bottoms: list[Shape | None]) -> tuple[tuple[Shape, ...], BridgeError | None]:
    known = [shape for shape in bottoms if shape is not None]
    if len(known) < len(bottoms) or layer.is_input or isinstance(layer, Opaque):
        return (), None
    try:
        return layer.checked_infer(*known), None
    except NotImplementedError:
        return (), None
    except BridgeError as error:
        return (), error


def run_checks(
    loaded: Loaded,
    *,
    skip: Collection[str] = (),
    only: Collection[str] | None = None,
    shapes: Mapping[str, Shape] | None = None,
) -> Checked:
    """Run the checks on a net.

    Args:
        loaded: The net.
        skip: Names of checks to leave out.
        only: Names of the checks to run; ``None`` for all.
        shapes: Shapes of input blobs, where they are not to be the file's.

    Raises:
        UsageError: There is no check of a name.
    """
    if unknown := [name for name in [*skip, *(only or ())] if name not in CHECKS]:
        raise UsageError(f"no check '{unknown[0]}'", hint=f"checks: {', '.join(CHECKS)}")
    chosen = [entry for name, entry in CHECKS.items() if name not in skip and (only is None or name in only)]
    subject = Subject(loaded, shapes)
    with np.errstate(all="ignore"):  # a weight may be any number, or none
        findings = [
            Finding(entry.name, severity, layer, message, hint)
            for entry in chosen
            for severity, layer, message, hint in entry.function(subject)
        ]
    return Checked(loaded.net.where, tuple(entry.name for entry in chosen), tuple(findings))


# -- shapes and parameters -------------------------------------------------------------------


@check("parameters", "the parameters of known layer types make sense, and every layer type is known")
def _parameters(subject: Subject) -> _Found:
    for layer in subject.net.layers:
        if isinstance(layer, Opaque):
            known = layer.type in REGISTRY
            hint = "" if known else "its blobs are compared all the same; it cannot be run"
            yield ERROR if known else NOTE, layer.name, layer.problem, hint


@check("fields", "every field of a layer is read, or bears on no result")
def _fields(subject: Subject) -> _Found:
    for found in unread_fields(subject.net):
        if not found.reason:
            text = found.text.removeprefix(f"{found.layer}: ")
            severity = NOTE if subject.net.allow_unknown_fields else ERROR
            yield severity, found.name, text, found.hint


@check("group", "input and output channels divide into the groups of a convolution")
def _group(subject: Subject) -> _Found:
    for layer, bottoms, _ in subject.flow:
        shape = bottoms[0] if bottoms else None
        axis = layer.attributes().get("axis", 1)
        if layer.group > 1 and shape and axis < len(shape) and shape[axis] % layer.group:
            yield ERROR, layer.name, f"{shape[axis]} input channels do not divide into {layer.group} groups", ""


@check("kernel", "kernels fit into their padded inputs")
def _kernel(subject: Subject) -> _Found:
    for layer, _, problem in subject.flow:
        if problem is not None and problem.rule == "kernel":
            yield ERROR, layer.name, problem.reason, ""


@check("shapes", "blobs have the shapes that the parameters and the inputs demand")
def _shapes(subject: Subject) -> _Found:
    for name, shape in subject.net.inputs.items():
        if shape is not None and too_large(shape):
            yield ERROR, "", f"input '{name}' would be {times(shape)}", MOST
    for layer, _, problem in subject.flow:
        if problem is not None and problem.rule not in ("kernel", "group"):
            dense = layer.group > 1 and problem.rule == "weight"
            hint = "a grouped kernel in its dense form?" if dense else problem.hint
            yield ERROR, layer.name, problem.reason, hint


# -- values ----------------------------------------------------------------------------------


@check("finite", "no weight is NaN or infinite")
def _finite(subject: Subject) -> _Found:
    for (layer, role), values in subject.values.items():
        if values.nonfinite:
            place = list(np.unravel_index(values.first_nonfinite, values.shape))
            where = f", the first at {[int(i) for i in place]}"
            yield ERROR, layer, f"blob '{role}' is NaN or infinite in {plural(values.nonfinite, 'place')}{where}", ""


@check("denormals", "weights are no denormal numbers, which are slow on CPUs")
def _denormals(subject: Subject) -> _Found:
    for (layer, role), values in subject.values.items():
        if values.denormal:
            yield NOTE, layer, f"blob '{role}' has {plural(values.denormal, 'denormal value')}", "they slow CPUs down"


@check("dead-filters", "no output channel has weights that are all zero")
def _dead(subject: Subject) -> _Found:
    for layer in subject.net.layers:
        values = subject.values.get((layer.name, "weight"))
        if values is not None and len(values.shape) >= 2 and values.dead:
            yield NOTE, layer.name, f"all zero: {values.dead} of {plural(values.shape[0], 'filter')}", ""


@check("batch-norm", "scale factors of BatchNorm are not 0, and no variance is negative")
def _batch_norm(subject: Subject) -> _Found:
    for layer in subject.net.layers:
        if "variance" not in layer.blobs:
            continue
        factor = layer.blobs["scale_factor"].reshape(-1) if "scale_factor" in layer.blobs else np.ones(1)
        if factor.size and factor[0] == 0:
            message = "scale factor 0: Caffe takes mean and variance for 0"
            yield NOTE, layer.name, message, "NVCaffe before 0.16.5 wrote 0 beside real statistics"
            continue
        variance = layer.blobs["variance"] / (factor[0] if factor.size else 1)
        if bool((variance + layer.attributes().get("eps", 0.0) <= 0).any()):
            yield ERROR, layer.name, f"variance {variance.min():.4g} is negative: its root is NaN", ""
        elif bool((variance < 0).any()):
            yield NOTE, layer.name, f"variance {variance.min():.4g} is negative, by less than eps", ""


@check("shared", "every stored copy of a shared parameter is the same")
def _shared(subject: Subject) -> _Found:
    for name, copies in subject.net.shared.items():
        last = copies[-1].numpy()
        for number, copy in enumerate(copies[:-1]):
            if copy.dtype != copies[-1].dtype or not same_bits(copy.numpy(), last):
                message = f"copy {number} of the shared parameter '{name}' is not the last one, which Caffe uses"
                yield ERROR, "", message, ""
                break


@check("spread-groups", "no kernel is the dense form of a grouped one")
def _spread(subject: Subject) -> _Found:
    for layer in subject.net.layers:
        if layer.group > 1 or "weight" not in layer.blobs or "kernel_size" not in layer.attributes():
            continue
        groups = block_groups(layer.blobs["weight"])
        if groups > 1:
            message = f"the weight is block-diagonal: a convolution of group {groups}, spread to a dense one"
            yield NOTE, layer.name, message, "Chainer's CaffeFunction does that"


# -- wiring and names ------------------------------------------------------------------------


@check("no-weights", "every layer that needs weights has some")
def _no_weights(subject: Subject) -> _Found:
    names = set(subject.net.layer_names)
    hints = Hints(raw.name for raw in subject.loaded.raw.layers if raw.blobs and raw.name not in names)
    for layer in subject.net.layers:
        if layer.uncovered and "has no blobs for it" in layer.uncovered:
            yield ERROR, layer.name, "the weights file has none for it", hints(layer.name)


@check("unused-weights", "every stored layer is in the net")
def _unused(subject: Subject) -> _Found:
    names = dict.fromkeys(subject.net.layer_names)
    hints = Hints(names)
    for raw in subject.loaded.raw.layers:
        if raw.blobs and raw.name not in names:
            message = f"no layer uses its {plural(len(raw.blobs), 'stored blob')}"
            yield NOTE, raw.name, message, hints(raw.name)


@check("same-net", "prototxt and weights are of the same net")
def _same_net(subject: Subject) -> _Found:
    stored = {raw.name: raw for raw in subject.loaded.raw.layers if raw.blobs}
    needing = [layer.name for layer in subject.net.layers if layer.blobs or "has no blobs" in layer.uncovered]
    if subject.loaded.definition is None or not stored or not needing:
        return
    if not set(needing) & set(stored):
        hints = Hints(stored)
        found = [(name, hint) for name in needing[: Hints.MOST] if (hint := hints(name))]
        hint = f"'{found[0][0]}': {found[0][1]}" if found else ""
        yield ERROR, "", "no layer of the prototxt has weights in the file: they are of different nets", hint


@check("duplicate-names", "no two layers have one name")
def _duplicates(subject: Subject) -> _Found:
    for name, number in Counter(layer.name for layer in subject.net.layers).items():
        if number > 1:
            yield NOTE, name, f"{number} layers have this name", "Caffe finds weights by it"


@check("wiring", "every blob that a layer reads is written by a layer before it, or is an input")
def _wiring(subject: Subject) -> _Found:
    declared = {top for layer in subject.net.layers if layer.is_input for top in layer.tops}
    if not declared:
        return
    written: set[str] = set()
    left = Hints.MOST
    for layer in subject.net.layers:
        for bottom in layer.bottoms:
            if bottom not in written and bottom not in declared:
                message = f"reads blob '{bottom}', which no layer before it writes"
                yield ERROR, layer.name, message, nearest(bottom, written) if left > 0 else ""
                left -= 1
        written.update(layer.tops)
