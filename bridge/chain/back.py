"""From a chain, after training, back to a net."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bridge.chain.build import NetChain, new_blobs
from bridge.chain.devices import to_host
from bridge.chain.matching import parts, suits
from bridge.chain.pairing import Pair, is_affine, pairs
from bridge.chain.renaming import Rename, chosen
from bridge.errors import ModelError, UsageError
from bridge.schema import Blob, Blobs, Layer, Net, Shape, times


def from_chain(
    chain: Any, net: Net, rename: Rename = None, skip: Iterable[str] = (), *, by: str = "name", args: Any = None
) -> Net:
    """The net with the chain's arrays as its blobs.

    A blob whose values training did not change stays the very blob that was read, so
    that a round trip is exact in whatever precision and shape the file had. What did change is
    float32, as in the chain. A layer whose link has another number of outputs gets that number, which a note of the
    net says. A net without blobs, of a prototxt alone, gets all of them from the chain.

    Args:
        chain: Made by :func:`~bridge.chain.build.build_chain`; or one of the user's own, which the net
            describes: its links and the net's layers meet as in :func:`~bridge.chain.transplant.transplant`.
            A dense weight becomes the layer's grouped one if it is still zero between the groups.
        net: The net it was made from, or one of the same layers.
        rename: As in a transplant, for a chain of the user's own.
        skip: Names of layers that keep their own blobs, or patterns, likewise.
        by: As in a transplant.
        args: As in a transplant.

    Raises:
        UsageError: The chain does not have the net's layers, or an argument is wrong.
        ModelError: An array does not fit the layer's blob.
    """
    if isinstance(chain, NetChain):
        if rename is not None or [*skip] or by != "name":
            raise UsageError("rename, skip and by are for chains of your own; this one knows the net's layers")
        return _from_built(chain, net)
    return _from_written(chain, net, rename, set(chosen(skip, (layer.name for layer in net.layers), "skip")), by, args)


def _from_built(chain: NetChain, net: Net) -> Net:
    if chain.layer_names() != [layer.name for layer in net.layers]:
        raise UsageError("the chain was not built from this net: its layers are others", where=net.where)
    made: dict[int, Blob] = {}
    layers = []
    for index, layer in enumerate(net.layers):
        blobs = {}
        for role in chain.roles(index):
            array, shape = chain.array(index, role), chain.shape(index, role)
            stored = layer.blobs.blob(role) if role in layer.blobs else None
            if stored is not None and stored.shape != shape:
                raise UsageError(
                    f"blob '{role}' is {times(stored.shape)}, in the chain {times(shape)}",
                    where=f"{net.where}: {layer.label}",
                )
            if id(array) not in made:
                made[id(array)] = _blob(_on_cpu(array), stored)
            blobs[role] = made[id(array)].reshaped(shape)  # layers may share it under several shapes
        layers.append(layer.changed(blobs=Blobs(blobs)))
    return _with_layers(net, layers)


def _on_cpu(array: Any) -> np.ndarray:
    return to_host(getattr(array, "array", array))


def _blob(values: np.ndarray, stored: Blob | None) -> Blob:
    """The stored blob if it holds these values, else a new one."""
    if stored is not None and _same(stored.numpy(), values):
        return stored
    return Blob.of(values.copy())


def _same(stored: np.ndarray, values: np.ndarray) -> bool:
    """Whether a chain that was filled with the stored values would have these, bit by bit."""
    with np.errstate(all="ignore"):
        filled = np.ascontiguousarray(stored.reshape(values.shape), dtype=values.dtype)
    bits = f"u{values.itemsize}"
    return np.array_equal(filled.view(bits), np.ascontiguousarray(values).view(bits))


def _with_layers(net: Net, layers: list[Layer]) -> Net:
    """The net with these layers, and without the file's own copies of shared parameters once any blob is another."""
    old = [blob for layer in net.layers for _, blob in layer.blobs.entries()]
    new = [blob for layer in layers for _, blob in layer.blobs.entries()]
    same = len(old) == len(new) and all(a.origin is b.origin for a, b in zip(old, new, strict=True))
    return net.replace(layers=tuple(layers), shared=net.shared if same else {})


# -- a chain of the user's own -----------------------------------------------------------------


def _from_written(chain: Any, net: Net, rename: Rename, skip: set[str], by: str, args: Any) -> Net:
    whole = _with_placeholders(net)
    found = [pair for pair in pairs(whole, chain, rename, by, args) if pair.layer.name not in skip]
    sized = {id(pair.layer): _sized(whole, pair) for pair in found}
    changed: dict[int, Blob] = {}  # by the stored blob's origin: layers may share it
    for pair in (pair._replace(layer=sized[id(pair.layer)]) for pair in found):
        for role, blob in _new_blobs(whole, pair).items():
            origin = pair.layer.blobs.blob(role).origin
            if not _same(changed.setdefault(id(origin), blob).numpy(), blob.numpy()):
                raise _failed(net, pair, role, "the chain has several values for a parameter that layers share")
    _check_all_found(net, found, changed)
    made = [sized.get(id(layer), layer) for layer in whole.layers]
    layers = [layer.changed(blobs=_exchanged(layer.blobs, changed)) for layer in made]
    if whole is not net and skip:
        layers = [net.layers[index] if layer.name in skip else layer for index, layer in enumerate(layers)]
    return _resized_net(net, _with_layers(net, layers))


def _with_placeholders(net: Net) -> Net:
    """The net with blobs in layers that need some and have none; a chain's arrays take their places.

    Raises:
        ModelError: The shapes of the net's inputs are not known.
    """
    if all(layer.blobs or layer.uncovered or not layer.roles(0) for layer in net.layers):
        return net
    made = zip(net.layers, new_blobs(net, seed=0), strict=True)
    return net.replace(layers=tuple(layer.changed(blobs=Blobs(blobs)) if blobs else layer for layer, blobs in made))


def _sized(net: Net, pair: Pair) -> Layer:
    """The layer with as many outputs as its link has, such as a new head's."""
    layer, weight = pair.layer, getattr(pair.link, "W", None)
    if layer.outputs is None or getattr(weight, "array", None) is None or suits(layer, pair.link):
        return layer
    outputs = _outputs(layer, pair.link)
    shapes = {role: _with_outputs(layer, blob.shape, outputs) for role, blob in layer.blobs.entries()}
    if any(len(net_layers) > 1 for net_layers in _sharing(net, layer)):
        return layer
    blobs = {role: Blob.of(np.zeros(shape, np.float32)) for role, shape in shapes.items()}
    made = layer.resized(outputs).changed(blobs=Blobs(blobs))
    return made if suits(made, pair.link) else layer  # another difference than that of the outputs is an error


def _outputs(layer: Layer, link: Any) -> int:
    """How many outputs a link has that is of the layer's kind."""
    shape = link.W.shape
    outputs: int = shape[1] * getattr(link, "groups", 1) if layer.inputs_first else shape[0]
    return outputs


def _with_outputs(layer: Layer, shape: Shape, outputs: int) -> Shape:
    """The shape of a layer's blob if the layer had that many outputs."""
    axis = (1 if layer.inputs_first or layer.weight_transposed else 0) if len(shape) > 1 else 0
    extent = outputs // layer.group if layer.inputs_first and len(shape) > 1 else outputs
    return (*shape[:axis], extent, *shape[axis + 1 :])


def _sharing(net: Net, layer: Layer) -> list[list[str]]:
    """For each blob of the layer the layers that have it."""
    return [
        [other.name for other in net.layers for _, theirs in other.blobs.entries() if theirs.origin is blob.origin]
        for _, blob in layer.blobs.entries()
    ]


def _resized_net(net: Net, made: Net) -> Net:
    """The net with a note for each layer that has the outputs of its link.

    Raises:
        ModelError: A layer behind it cannot take so many.
    """
    notes = [
        f"{new.label}: {new.outputs} outputs, as its link has; {old.outputs} before"
        for old, new in zip(net.layers, made.layers, strict=True)
        if old.outputs != new.outputs
    ]
    if notes and None not in made.inputs.values():
        made.infer()
    return made.replace(notes=(*made.notes, *notes))


def _new_blobs(net: Net, pair: Pair) -> dict[str, Blob]:
    """By role what the link has for the layer: the stored blobs where nothing changed."""
    if pair.link is None:
        return {}
    stored, made = pair.layer.blobs, {}
    for part in parts(pair.layer, pair.link, affine=is_affine(net, pair)):
        try:
            same = _same(part.shaped(), part.current())
            made[part.role] = stored.blob(part.role).origin if same else Blob.of(part.restored(part.current()))
        except ModelError as error:
            raise _failed(net, pair, part.role, error.text) from None
    moved = any(made[role] is not stored.blob(role).origin for role in made)
    if moved and pair.layer.scaled_statistics and "mean" in made:
        # statistics come divided by the scale factor
        made.update((part.role, Blob.of(part.restored(part.current()))) for part in parts(pair.layer, pair.link))
        made["scale_factor"] = Blob.of(np.ones(stored.blob("scale_factor").shape, np.float32))
    return made


def _failed(net: Net, pair: Pair, role: str, problem: str) -> ModelError:
    return ModelError(problem, where=f"{net.where}: {pair.layer.label}: blob '{role}' from '{pair.path}'")


def _check_all_found(net: Net, found: list[Pair], changed: Mapping[int, Blob]) -> None:
    for pair in found:
        lost = [role for role, blob in pair.layer.blobs.entries() if id(blob.origin) not in changed]
        if pair.link is None and lost:
            raise UsageError(
                f"its blobs have no arrays in the chain: {pair.problem}",
                where=f"{net.where}: {pair.layer.label}",
                hint="say with rename which link it is, or with skip that the layer keeps its blobs",
            )


def _exchanged(blobs: Blobs, changed: Mapping[int, Blob]) -> Blobs:
    made = {}
    for role, blob in blobs.entries():
        new = changed.get(id(blob.origin), blob.origin)
        made[role] = blob if new is blob.origin else new.reshaped(blob.shape)
    return Blobs(made)
