"""Blobs of a net that the user sets."""

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
