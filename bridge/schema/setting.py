"""Blobs and layers of a net that the user sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from bridge.errors import BridgeError, NotFoundError, UsageError, nearest
from bridge.schema.blob import Blob, Blobs, times
from bridge.schema.layer import Layer
from bridge.schema.net import Net

_N = TypeVar("_N", bound=Net)


def set_blobs(net: _N, layer: Layer, arrays: Mapping[str, Any]) -> _N:
    """The net with other values for a layer's blobs; see :meth:`bridge.Net.with_blobs`."""
    roles = tuple(layer.blobs) or layer.roles(0)
    if not roles:
        raise UsageError("has no blobs to set", where=net.where, subject=layer.label, hint=layer.reason())
    for role in arrays:
        if role not in roles:
            hint = nearest(role, roles) or f"its blobs: {', '.join(roles)}"
            raise NotFoundError(f"no blob '{role}'", where=net.where, subject=layer.label, hint=hint)
    if missing := [role for role in roles if role not in arrays and role not in layer.blobs]:
        raise layer.fail(f"blob '{missing[0]}' is missing", expected=f"values for {', '.join(roles)}").at(net.where)
    made = {role: _blob(net, layer, role, arrays[role]) for role in roles if role in arrays}
    twins = {id(layer.blobs.blob(role).origin): blob for role, blob in made.items() if role in layer.blobs}
    layers = tuple(_set(other, made if other is layer else {}, roles, twins) for other in net.layers)
    changed = net.replace(layers=layers)
    _check(changed, layer)
    return changed


def set_layer(net: _N, layer: Layer, seed: int | None) -> _N:
    """The net with a layer; see :meth:`bridge.Net.with_layer`."""
    new = layer if layer.blobs or not layer.roles(0) else _filled(net, layer, seed)
    if layer.name in net:
        old = net[layer.name]
        layers = tuple(new if other is old else other for other in net.layers)
    else:
        writers = [index for index, other in enumerate(net.layers) if {*other.tops} & {*layer.bottoms}]
        place = 1 + max(writers, default=len(net) - 1)
        layers = (*net.layers[:place], new, *net.layers[place:])
    changed = net.replace(layers=layers)
    _check(changed, new)
    return changed


def _filled(net: Net, layer: Layer, seed: int | None) -> Layer:
    """The layer with new blobs for the shapes that its bottoms have where it is to be.

    Raises:
        ModelError: The shape of a bottom is not known.
    """
    known = {name: shape for name, shape in net.inputs.items() if shape is not None}
    if len(known) == len(net.inputs):
        last = net.layer_names.index(layer.name) if layer.name in net else len(net)
        for other, tops in zip(net.layers[:last], net.infer(), strict=False):
            known.update(zip(other.tops, tops, strict=False))
    missing = [bottom for bottom in layer.bottoms if bottom not in known]
    if missing:
        hint = "give the net's inputs their shapes, with with_input_shapes"
        raise layer.fail(f"the shape of '{missing[0]}' is not known", hint=hint).at(net.where)
    try:
        return layer.filled(*(known[bottom] for bottom in layer.bottoms), seed=seed)
    except BridgeError as error:
        raise error.at(net.where) from None


def _blob(net: Net, layer: Layer, role: str, values: Any) -> Blob:
    array = np.array(values)
    if array.dtype.kind not in "fiub":
        raise layer.fail(f"blob '{role}' is of type {array.dtype}", expected="numbers").at(net.where)
    array = array if array.dtype.kind == "f" else array.astype(np.float32)
    stored = layer.blobs.blob(role).shape if role in layer.blobs else array.shape
    if array.shape != stored:
        raise layer.fail(f"blob '{role}' is {times(array.shape)}", expected=times(stored), rule=role).at(net.where)
    return Blob.of(array)


def _set(layer: Layer, made: Mapping[str, Blob], roles: tuple[str, ...], twins: Mapping[int, Blob]) -> Layer:
    """The layer with new blobs: its own, or the shared ones that another layer got."""
    blobs = dict(layer.blobs.entries())
    shared = {
        role: twins[id(blob.origin)].reshaped(blob.shape) for role, blob in blobs.items() if id(blob.origin) in twins
    }
    if not made and not shared:
        return layer
    blobs = {**blobs, **shared, **made}
    ordered = {role: blobs[role] for role in (roles if made else blobs)}
    return layer.changed(blobs=Blobs(ordered), uncovered="")


def _check(net: Net, layer: Layer) -> None:
    """Compare shapes where those of the inputs are known; else a run or an export does."""
    try:
        net.infer()
    except BridgeError as error:
        if error.subject == layer.label:
            raise error.at(net.where) from None
