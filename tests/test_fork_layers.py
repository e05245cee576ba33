"""Layers of forks against references in plain NumPy, where the real Caffe at hand has no such layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import engines
from bridge.layers import REGISTRY
from bridge.schema import Layer
from bridge.testing import LayerCase
from tests.conftest import need
from tests.references import REFERENCES
from tests.strategies import CASES
from tests.strategies.common import positive

RTOL, ATOL = 1e-4, 1e-5
ENGINES = [
    (name, engine)
    for name in sorted(REFERENCES)
    for engine, method in (("onnxruntime", "to_onnx"), ("chainer", "to_chainer"), ("numpy", "to_numpy"))
    if getattr(REGISTRY[name], method) is not getattr(Layer, method)
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


PRIORS = ((1, 3, 4, 5), (1, 3, 33, 41))
OPEN = [
    LayerCase("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }", ((1, 3, 4, 5),)),
    LayerCase("Transpose", "transpose_param { dim: 0 dim: 2 dim: 3 dim: 1 }", ((1, 3, 4, 5),)),
    LayerCase("Normalize", "norm_param { across_spatial: false channel_shared: false }", ((1, 3, 4, 5),)),
    LayerCase("Normalize", "norm_param { }", ((1, 3, 4, 5),)),
    LayerCase("L2Normalization", "", ((1, 3, 4, 5),)),
    LayerCase("BN", "", ((1, 3, 4, 5),), blobs={"variance": positive}),
    LayerCase("BN", "bn_param { bn_mode: LEARN }", ((1, 3, 4, 5),)),
    LayerCase("Upsample", "upsample_param { scale: 2 }", ((1, 3, 4, 5),)),
    LayerCase("Interp", "interp_param { zoom_factor: 3 shrink_factor: 2 pad_end: -1 }", ((1, 3, 4, 5),)),
    LayerCase("Interp", "interp_param { height: 7 width: 9 }", ((1, 3, 4, 5),)),
    LayerCase("ShuffleChannel", "shuffle_channel_param { group: 3 }", ((1, 6, 4, 5),)),
    LayerCase("Axpy", "", ((1, 3), (1, 3, 4, 5), (1, 3, 4, 5))),
    LayerCase("PixelShuffle", "pixelshuffle_param { upscale_factor: 2 }", ((1, 8, 4, 5),)),
    LayerCase("Reorg", "reorg_param { stride: 2 reverse: true }", ((1, 8, 4, 5),)),
    LayerCase("CropCenter", "crop_center_param { crop_size: [0, 0, 1, 1] }", ((1, 3, 4, 5),)),
    LayerCase("PriorBox", "prior_box_param { min_size: 9 max_size: 20 aspect_ratio: 2 clip: true }", PRIORS),
    LayerCase("PriorBox", "prior_box_param { min_size: 9 step: 8 img_size: 40 variance: 0.2 }", PRIORS),
    LayerCase("PriorBox", "prior_box_param { fixed_size: 9 density: 2 fixed_ratio: 2 fixed_ratio: 0.5 }", PRIORS),
]  # fmt: skip


@pytest.mark.parametrize("case", OPEN, ids=lambda case: case.type)
def test_exported_model_serves_other_batches_and_image_sizes(case: LayerCase) -> None:
    need("onnxruntime")
    larger = [(3, *shape[1:2], *(n + 2 for n in shape[2:])) for shape in case.shapes]
    apart = case.type == "PriorBox"
    extents: dict[str, list[int | str]] = {
        f"in{i}": ["n", *shape[1:2], *[f"{side}{i * apart}" for side in "hw"][: len(shape) - 2]]
        for i, shape in enumerate(case.shapes)
    }
    run_open(case, dataclasses.replace(case, shapes=tuple(larger)), extents)


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
    blobs = [blob.numpy() for _, blob in layer.blobs.entries()]
    expected = REFERENCES[case.type](layer.definition, blobs, list(inputs.values()))
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, RTOL, ATOL)


ROIS = {1: lambda rng, shape: np.array([[0, 1, 2, 6, 5], [1, 0, 0, 3.2, 7.7], [1, 5, 5, 5, 5]])}
SMOOTH = [
    *OPEN,
    LayerCase("BN", "bn_param { var_eps: 0.01 moving_average: true }", ((2, 3, 4, 5),), blobs={"variance": positive}),
    LayerCase("BN", "bn_param { bn_mode: INFERENCE }", ((2, 3, 4, 5),)),
    LayerCase("Interp", "interp_param { shrink_factor: 2 }", ((2, 3, 5, 6),)),
    LayerCase("Reorg", "reorg_param { stride: 2 }", ((2, 4, 4, 6),)),
    LayerCase(
        "Upsample",
        "upsample_param { scale: 2 }",
        ((2, 2, 2, 2),) * 2,
        data={1: lambda rng, shape: np.stack([rng.permutation(16)[:4] for _ in range(4)]).reshape(shape)},
    ),
    LayerCase("ROIPooling", "roi_pooling_param { pooled_h: 3 pooled_w: 2 }", ((2, 3, 8, 8), (3, 5)), data=ROIS),
    LayerCase(
        "PSROIPooling",
        "psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: 1 }",
        ((2, 8, 8, 8), (3, 5)),
        data=ROIS,
    ),
]


@pytest.mark.parametrize("case", [case for case in SMOOTH if case.type != "PriorBox"], ids=lambda case: case.type)
def test_gradient_is_the_slope(case: LayerCase) -> None:
    need("chainer")
    from types import SimpleNamespace

    from bridge.chain.functions import F

    layer, inputs = case.net().layers[-1], case.inputs()
    rng = np.random.default_rng(1)
    x = [inputs[bottom].astype(np.float64) for bottom in layer.bottoms]
    blobs = {layer.array_name(role): blob.numpy().astype(np.float64) for role, blob in layer.blobs.entries()}
    learned = [name for name in blobs if name not in layer.statistics]  # type: ignore[attr-defined]
    steps = [rng.standard_normal(a.shape) * (index not in case.data) for index, a in enumerate(x)]
    steps += [rng.standard_normal(blobs[name].shape) for name in learned]

    def value(scale: float) -> tuple[Any, list[Any]]:
        starts = [*x, *(blobs[name] for name in learned)]
        points = [F.chainer.Variable(np.asarray(a + scale * d)) for a, d in zip(starts, steps, strict=True)]
        link = SimpleNamespace(**{**blobs, **dict(zip(learned, points[len(x) :], strict=True))})
        with F.chainer.using_config("train", False):
            y = layer.to_chainer(F, link, *points[: len(x)])
        return F.sum(y * weight), points

    with F.chainer.using_config("train", False):
        weight = rng.standard_normal(case.net().infer()[-1][0])
        loss, points = value(0)
        loss.backward()
        grads = [np.zeros(1) if point.grad is None else point.grad for point in points]
        slope = sum(float((grad * d).sum()) for grad, d in zip(grads, steps, strict=True))
        numeric = float(value(1e-5)[0].array - value(-1e-5)[0].array) / 2e-5
    assert slope == pytest.approx(numeric, rel=1e-4, abs=1e-6)
    assert numeric != 0
