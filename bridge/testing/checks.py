"""The checks behind :class:`bridge.testing.LayerContract`, each on one case."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.errors import ModelError
from bridge.layers import build_layer
from bridge.layers.base import CaffeLayer
from bridge.schema import Blob, Blobs, Layer, Net, Shape
from bridge.testing.cases import LayerCase
from bridge.testing.hooks import OPTIONS, layer_of
from bridge.testing.numbers import bounds_of
from bridge.testing.weights import MOVED, compared
from bridge.verification.compare import same_bits
from bridge.verification.inputs import make_inputs, write_recorded
from bridge.verification.outputs import Side, engine_side
from bridge.verification.results import DIFFERENT
from bridge.verification.segments import Place


def _stored(layer: Layer) -> dict[str, Blob]:
    return dict(layer.blobs.entries())


# -- definition, blobs ---------------------------------------------------------------------------


def definition_builds_the_same(case: LayerCase) -> None:
    """One truth: the definition says all that the attributes do."""
    layer = layer_of(case.net())
    again = build_layer(layer.definition, list(_stored(layer).values()))
    assert type(again) is type(layer), again.reason()
    assert isinstance(again, CaffeLayer)
    assert repr(again.attributes()) == repr(layer.attributes())
    assert (again.name, again.bottoms, again.tops) == (layer.name, layer.bottoms, layer.tops)
    assert _shapes(again) == _shapes(layer)


def _shapes(layer: Layer) -> dict[str, Shape]:
    return {role: blob.shape for role, blob in layer.blobs.entries()}


def blobs_fit(case: LayerCase) -> None:
    """Roles, shapes and stored blobs are of one mind."""
    layer = layer_of(case.net())
    wanted = layer.blob_shapes(*case.shapes)
    assert tuple(wanted) == layer.roles(len(wanted)), "blob_shapes has other roles than roles()"
    assert _shapes(layer) == {role: tuple(shape) for role, shape in wanted.items()}
    legacy = [_legacy(layer, role, blob) for role, blob in _stored(layer).items()]
    assert _shapes(build_layer(layer.definition, legacy)) == _shapes(layer), "with four axes, as old files have them"
    for role, blob in _stored(layer).items():
        longer = Blob.of(np.zeros(blob.size + 1, np.float32))
        wrong = layer.changed(blobs=Blobs({**_stored(layer), role: longer}))
        with pytest.raises(ModelError, match=f"'{role}'"):
            wrong.checked_infer(*case.shapes)


def _legacy(layer: CaffeLayer, role: str, blob: Blob) -> Blob:
    """The blob with four axes, as Caffe wrote it before 2015, where the layer can bring it back."""
    if layer.rank(role) is None or len(blob.shape) > 4:
        return blob
    return blob.reshaped([1] * (4 - len(blob.shape)) + list(blob.shape))


# -- what engines compute ------------------------------------------------------------------------


def engines_agree(case: LayerCase) -> None:
    """Each engine's results have the inferred shapes; verification finds no difference between engines."""
    net, inputs = case.net(), case.inputs()
    layer = layer_of(net)
    a = engine_side("onnxruntime", net, inputs, OPTIONS)
    _check_shapes(net, a)
    if not layer.has_chainer:
        return
    b = engine_side("chainer", net, inputs, {})
    _check_shapes(net, b)
    for place, array in a.values.items():
        np.testing.assert_allclose(array, b.values[place], rtol=1e-3, atol=1e-4, err_msg=case.prototxt)
    found = compared(net, a, b, case.seed)
    assert found.count(DIFFERENT) == 0, [str(top) for top in found.tops]


def _check_shapes(net: Net, side: Side) -> None:
    layer, last = layer_of(net), len(net.layers) - 1
    for top, most in enumerate(net.infer()[-1]):
        place = Place(last, top)
        shape = side.values[place].shape if place in side.values else most
        free = layer.data_dependent
        assert len(shape) == len(most), f"{side.name}: {shape}, inferred {most}"
        for axis, (extent, limit) in enumerate(zip(shape, most, strict=True)):
            fits = extent <= limit if axis in free else extent == limit
            assert fits, f"{side.name}: {shape}, inferred {most}"


def faults_are_found(case: LayerCase) -> float:
    """One value of each top, moved by MOVED times its bound, is found.

    Returns:
        The widest bound, relative to the largest number that the layer reads or writes, and at least to 1.
    """
    widest = 0.0
    net, inputs = case.net(), case.inputs()
    side = engine_side("onnxruntime", net, inputs, OPTIONS)
    for place, bound in bounds_of(net, side, case.seed).items():
        values = side.values[place].reshape(-1)
        finite = np.flatnonzero(np.isfinite(values) & (np.abs(values) < 1e30))
        if not finite.size:
            continue
        largest = max(1.0, *(float(np.abs(array).max(initial=0)) for array in (*inputs.values(), values[finite])))
        widest = max(widest, float(np.max(bound.values)) / largest)
        at = finite[case.seed % finite.size]
        limit = float(np.broadcast_to(bound.values, side.values[place].shape).reshape(-1)[at])
        assert _verdict(case, net, side, place, at, MOVED * limit) == DIFFERENT, bound.why
    return widest


def _verdict(case: LayerCase, net: Net, side: Side, place: Place, at: Any, distance: float) -> str:
    moved = side.values[place].copy()
    value = moved.reshape(-1)[at]
    step = np.float32(value + np.float32(distance))
    moved.reshape(-1)[at] = step if step != value else np.nextafter(value, np.float32(np.inf))
    found = compared(net, side, Side("changed", {**side.values, place: moved}), case.seed)
    return next(top.status for top in found.tops if top.top == net.layers[-1].tops[place[1]])


# -- other forms of the layer --------------------------------------------------------------------


def half_agrees(case: LayerCase) -> None:
    """The float16 export passes the check that ``bridge export --fp16`` makes."""
    from bridge.caffe_files.inference import inference_net
    from bridge.onnx_export import to_onnx_file
    from bridge.verification.exported import check_export

    net = inference_net(case.net())
    file, graph = to_onnx_file(net, half=True)
    if not graph.half:  # all of it is computed in float32
        return
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder) / "io.npz"
        write_recorded(recorded, {f"in:{name}": array for name, array in case.inputs().items()})
        remarks = check_export(file, graph, net, recorded=recorded if case.shapes else None)
    assert not any(remark.startswith("not run") for remark in remarks), remarks


def drawn_inputs_fit(case: LayerCase) -> None:
    """Both engines take what :func:`make_inputs` draws, and agree on it."""
    net = case.net()
    inputs = make_inputs(net, seed=case.seed)
    with np.errstate(all="ignore"):  # roots of negative numbers are NaN in both
        sides = [engine_side("onnxruntime", net, inputs, OPTIONS)]
        sides += [engine_side("chainer", net, inputs, {})] if layer_of(net).has_chainer else []
    if len(sides) == 2:
        a, b = sides
        found = compared(net, a, b, case.seed)
        assert found.count(DIFFERENT) == 0, [str(top) for top in found.tops]


def chain_is_stateless(case: LayerCase) -> None:
    """A second run, a run of a copy, and one of a chain that was saved and loaded give the same bits."""
    from bridge.chain.build import build_chain
    from bridge.chain.functions import chainer

    net, inputs = case.net(), case.inputs()
    chain = build_chain(net)
    before = {name: array.copy() for name, array in inputs.items()}
    with chainer.using_config("train", False):
        first = _run(chain, inputs)
        copy = chain.copy(mode="copy")
        _run(copy, {name: np.asarray(array + 1) for name, array in inputs.items()} if not case.data else inputs)
        loaded = build_chain(net)
        for param in loaded.params():
            param.array[...] = 0
        saved = chainer.serializers.DictionarySerializer()
        saved.save(chain)
        chainer.serializers.NpzDeserializer(saved.target).load(loaded)
        for again in (chain, copy, loaded):
            found = _run(again, inputs)
            assert all(same_bits(found[name], first[name]) for name in first)
    assert all(same_bits(inputs[name], array) for name, array in before.items()), "the layer changed its input"


def _run(chain: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    values = chain.run(dict(inputs))
    return {name: np.array(values[name].array) for name in chain.net_outputs if name in values}
