"""The checks of what a layer type declares about itself: the members of :class:`bridge.schema.hooks.LayerHooks`.

Each check compares an answer with what the layer computes. A safe default is never wrong; an answer
that promises more than the layer keeps is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bridge import engines
from bridge.layers.base import CaffeLayer
from bridge.schema import Net
from bridge.testing.cases import LayerCase
from bridge.verification.compare import same_bits

OPTIONS = {"threads": 1}
"""For ONNX Runtime: one thread, which is the fastest for nets of one layer."""


def layer_of(net: Net) -> CaffeLayer:
    """The layer under test, the last one of the net.

    Raises:
        AssertionError: It cannot be interpreted.
    """
    layer = net.layers[-1]
    assert isinstance(layer, CaffeLayer), f"the layer cannot be interpreted: {layer.reason()}"
    return layer


def tops_of(engine: str, net: Net, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What the layer writes, one array for each top that the engine shows."""
    options = OPTIONS if engine == "onnxruntime" else {}
    with np.errstate(all="ignore"):
        return [top for top in engines.make(engine, net, **options).tops(inputs)[-1] if top is not None]


# -- without running the layer ---------------------------------------------------------------------


def changes_go_into_the_definition(case: LayerCase) -> None:
    """``changed`` changes fields and definition alike."""
    layer = layer_of(case.net())
    moved = layer.changed(name="other", bottoms=["a"] * len(layer.bottoms), tops=["b"] * len(layer.tops))
    assert (moved.name, moved.bottoms, moved.tops) == ("other", tuple(moved.bottoms), tuple(moved.tops))
    assert moved.definition.text("name") == "other"
    assert moved.definition.all("bottom") == ["a"] * len(layer.bottoms)
    assert moved.definition.all("top") == ["b"] * len(layer.tops)
    assert layer.definition.text("name") == layer.name, "the layer that is changed stays as it is"
    if layer.message:
        again = layer.changed(**dict(_given(layer)))
        assert repr(again.attributes()) == repr(layer.attributes())
        assert again.definition == layer.definition


def _given(layer: CaffeLayer) -> Iterator[tuple[str, Any]]:
    """The parameters that the definition has, under the names of caffe.proto."""
    parameters = layer.definition.message(
        next(n for n in (layer.message, *layer.aliases, "") if n in layer.definition or not n)
    )
    for name in layer.attributes():
        if name in parameters:
            yield name, parameters.all(name)


def names_and_numbers_fit(case: LayerCase) -> None:
    """Roles, axes and counts that the layer declares exist."""
    layer, shapes = layer_of(case.net()), case.shapes
    roles = set(layer.blobs)
    for role in roles:
        field, value = layer.filler(role)
        assert field.isidentifier(), f"filler('{role}') names '{field}', which is no field"
        assert np.isfinite(value)
        assert layer.array_name(role).isidentifier()
    assert len({layer.array_name(role) for role in roles}) == len(roles), "two roles have one name in the link"
    for declared, needed in (
        (layer.flat_weight or layer.filters or layer.inputs_first, {"weight"}),
        (layer.normalises, {"mean", "variance"}),
        (layer.rescales, set()),
    ):
        assert not declared or not roles or needed <= roles, f"declares what needs the blobs {sorted(needed)}"
    for bottom, shape in enumerate(shapes):
        assert layer.batch_axis(bottom) >= 0, f"batch_axis({bottom}) of {shape}"
    if shapes:
        rank = len(shapes[0])
        assert all(0 <= axis < rank for axis in layer.summed_axes(rank)), f"summed_axes({rank})"
        assert layer.position_extent(*shapes) >= 1
        terms = layer.sum_terms(*shapes)
        assert terms is None or terms >= 1
        assert (layer.multiply_adds(*shapes) is None) == (terms is None)
    if layer.outputs is not None and layer.blobs and layer.filters and not layer.inputs_first:
        assert layer.weight.shape[0] == layer.outputs


def drawn_inputs_have_their_shapes(case: LayerCase) -> None:
    """``fill`` makes finite numbers of the shape that is wanted."""
    layer = layer_of(case.net())
    for bottom, shape in enumerate(case.shapes):
        if (fill := layer.fill(bottom)) is not None:
            made = np.asarray(fill(np.random.default_rng(case.seed), shape, case.shapes))
            assert made.shape == shape
            assert np.isfinite(made).all()


# -- running it --------------------------------------------------------------------------------------


def magnitudes_are_no_smaller(case: LayerCase) -> None:
    """For a sum, the sum of the terms' magnitudes is at least as large as the sum."""
    net, inputs = case.net(), case.inputs()
    layer = layer_of(net)
    if layer.sum_terms(*case.shapes) is None:
        return
    changed = net.replace(layers=(*net.layers[:-1], layer.magnitudes()))
    sums = tops_of("onnxruntime", changed, {name: np.abs(array) for name, array in inputs.items()})
    for top, most in zip(tops_of("onnxruntime", net, inputs), sums, strict=True):
        least = np.abs(top.astype(np.float64)) * (1 - 1e-4) - 1e-30
        assert not (most < least).any(), "magnitudes() leaves out terms of the sum"


def copies_are_copies(case: LayerCase) -> None:
    """``copies`` and ``shares_memory``: the tops have the bits of the first bottom."""
    net, inputs = case.net(), case.inputs()
    layer = layer_of(net)
    for top in tops_of("onnxruntime", net, inputs) if layer.copies or layer.shares_memory else ():
        first = inputs[layer.bottoms[0]]
        assert same_bits(top, first), "the top is no copy of the bottom"
        assert not layer.copies or top.shape == first.shape


def training_differs_as_declared(case: LayerCase) -> None:
    """A layer that is neither random nor uses its batch computes in training what it computes in a test."""
    net = case.net()
    layer = layer_of(net)
    if layer.draws_random or layer.uses_batch:
        return
    test, train, again = (_chain_tops(net, case.inputs(), mode) for mode in (False, True, True))
    assert all(map(same_bits, train, again)), "the layer is random in training: draws_random says it is not"
    assert all(map(same_bits, train, test)), "the layer computes something else in training: see uses_batch"


def _chain_tops(net: Net, inputs: Mapping[str, np.ndarray], train: bool) -> Sequence[np.ndarray]:
    from bridge.chain.build import build_chain
    from bridge.chain.functions import chainer

    chain = build_chain(net)
    chain.exact = True  # the fast way of training steps rounds otherwise
    with chainer.using_config("train", train), np.errstate(all="ignore"):
        values = chain.run({name: array.copy() for name, array in inputs.items()})
    return [np.array(values[name].array) for name in chain.net_outputs if name in values]
