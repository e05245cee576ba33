"""Layers of forks against references in plain NumPy, where the real Caffe at hand has no such layer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import engines
from bridge.layers import REGISTRY
from bridge.schema import Layer
from tests.conftest import need
from tests.references import REFERENCES
from tests.strategies import CASES, LayerCase

RTOL, ATOL = 1e-4, 1e-5
ENGINES = [
    (name, engine)
    for name in sorted(REFERENCES)
    for engine in ("onnxruntime", "chainer")
    if engine == "onnxruntime" or REGISTRY[name].to_chainer is not Layer.to_chainer
]


def check(name: str, case: LayerCase, engine: str, **options: int) -> None:
    net, inputs = case.net(), case.inputs()
    layer = net.layers[-1]
    blobs = [blob.numpy() for _, blob in layer.blobs.entries()]
    expected = REFERENCES[name](layer.definition, blobs, [inputs[bottom] for bottom in layer.bottoms])
    tops = engines.make(engine, net, **options).tops(inputs)[-1]
    for mine, theirs in zip(tops, expected, strict=True):
        assert mine is not None
        assert mine.shape == theirs.shape, case.prototxt
        np.testing.assert_allclose(mine, theirs, RTOL, ATOL, err_msg=case.prototxt)


@pytest.mark.parametrize(("name", "engine"), ENGINES)
@settings(max_examples=25)
@given(data=st.data())
def test_engine_computes_what_the_forks_source_says(name: str, engine: str, data: st.DataObject) -> None:
    need(engine)
    check(name, data.draw(CASES[name]), engine)


OPEN = [
    LayerCase("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }", ((1, 3, 4, 5),)),
    LayerCase("Normalize", "norm_param { across_spatial: false channel_shared: false }", ((1, 3, 4, 5),)),
    LayerCase("Normalize", "norm_param { }", ((1, 3, 4, 5),)),
    LayerCase("L2Normalization", "", ((1, 3, 4, 5),)),
    LayerCase("BN", "", ((1, 3, 4, 5),), blobs={"variance": lambda rng, shape: rng.uniform(0.5, 2, shape)}),
    LayerCase("BN", "bn_param { bn_mode: LEARN }", ((1, 3, 4, 5),)),
    LayerCase("Upsample", "upsample_param { scale: 2 }", ((1, 3, 4, 5),)),
    LayerCase("Interp", "interp_param { zoom_factor: 3 shrink_factor: 2 pad_end: -1 }", ((1, 3, 4, 5),)),
    LayerCase("Interp", "interp_param { height: 7 width: 9 }", ((1, 3, 4, 5),)),
    LayerCase("ShuffleChannel", "shuffle_channel_param { group: 3 }", ((1, 6, 4, 5),)),
    LayerCase("Axpy", "", ((1, 3), (1, 3, 4, 5), (1, 3, 4, 5))),
    LayerCase("PixelShuffle", "pixelshuffle_param { upscale_factor: 2 }", ((1, 8, 4, 5),)),
    LayerCase("Reorg", "reorg_param { stride: 2 reverse: true }", ((1, 8, 4, 5),)),
    LayerCase("CropCenter", "crop_center_param { crop_size: 0 crop_size: 0 crop_size: 1 crop_size: 1 }", ((1, 3, 4, 5),)),
    LayerCase("PriorBox", "prior_box_param { min_size: 9 max_size: 20 aspect_ratio: 2 clip: true }", ((1, 3, 4, 5), (1, 3, 33, 41))),
    LayerCase("PriorBox", "prior_box_param { min_size: 9 step: 8 img_size: 40 variance: 0.2 }", ((1, 3, 4, 5), (1, 3, 33, 41))),
]  # fmt: skip


@pytest.mark.parametrize("case", OPEN, ids=lambda case: case.type)
def test_exported_model_serves_other_batches_and_image_sizes(case: LayerCase) -> None:
    need("onnxruntime")
    larger = dataclasses.replace(
        case, shapes=tuple((3, *shape[1:2], *(n + 2 for n in shape[2:])) for shape in case.shapes)
    )
    names = {f"in{i}": ["n", *shape[1:2], *([f"h{i and len(case.shapes) == 2}", f"w{i and len(case.shapes) == 2}"] if shape[2:] else [])] for i, shape in enumerate(case.shapes)}
    run_open(case, larger, names)


def run_open(case: LayerCase, other: LayerCase, extents: dict[str, list[int | str]]) -> None:
    """Export for ``case`` with open extents, run with the shapes of ``other``."""
    import onnx
    import onnxruntime as ort

    from bridge.onnx_export import to_onnx_model

    net, inputs = case.net(), other.inputs()
    model, graph = to_onnx_model(net, inputs=extents)
    assert not graph.notes
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    fed = {value.name: inputs[value.name] for value in session.get_inputs()}
    got = session.run(None, fed)
    layer = net.layers[-1]
    expected = REFERENCES[case.type](layer.definition, [blob.numpy() for _, blob in layer.blobs.entries()], list(inputs.values()))
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, RTOL, ATOL)
