"""New blobs hold what Caffe's fillers put there."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bridge.caffe_files import prototxt
from bridge.errors import ModelError, UnsupportedLayerError
from bridge.layers import CaffeLayer, build_layer
from tests.conftest import need

CONSTANTS = [
    ('type: "PReLU"', "slope", 0.25),
    ('type: "PReLU" prelu_param { filler { value: 0.5 } }', "slope", 0.5),
    ('type: "Bias"', "bias", 0),
    ('type: "Bias" bias_param { filler { value: 3 } }', "bias", 3),
    ('type: "Scale"', "gamma", 1),
    ('type: "Scale" scale_param { filler { type: "constant" } }', "gamma", 0),
    ('type: "Scale" scale_param { bias_term: true bias_filler { value: 2 } }', "beta", 2),
    ('type: "BatchNorm"', "scale_factor", 0),
    ('type: "BatchNorm" batch_norm_param { scale_bias: true }', "gamma", 1),
    ('type: "BatchNorm" batch_norm_param { scale_filler { value: 4 } }', "gamma", 4),
    ('type: "Embed" embed_param { num_output: 1 input_dim: 2 bias_filler { value: 5 } }', "bias", 5),
]


def filled(layer: str, role: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    need("chainer")
    from bridge.chain.fillers import filled

    made = build_layer(prototxt.parse(f'name: "l" bottom: "x" top: "y" {layer}'))
    assert isinstance(made, CaffeLayer)
    return filled(made, role, shape, seed=seed)


@pytest.mark.parametrize(("layer", "role", "value"), CONSTANTS)
def test_constant(layer: str, role: str, value: float) -> None:
    np.testing.assert_array_equal(filled(layer, role, (3,)), np.full(3, value, np.float32))


BILINEAR = {
    2: [0.5, 0.5],
    3: [0.5, 1, 0.5],
    4: [0.25, 0.75, 0.75, 0.25],
    5: [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3],
    6: [1 / 6, 1 / 2, 5 / 6, 5 / 6, 1 / 2, 1 / 6],
}
"""Kernel -> one line of the weight, as the real Caffe 1.0 fills it."""


@pytest.mark.parametrize("kernel", BILINEAR)
def test_bilinear(kernel: int) -> None:
    params = f'num_output: 2 kernel_size: {kernel} weight_filler {{ type: "bilinear" }}'
    layer = f'type: "Deconvolution" convolution_param {{ {params} }}'
    line = np.array(BILINEAR[kernel])
    expected = np.broadcast_to(np.outer(line, line), (2, 1, kernel, kernel))
    np.testing.assert_allclose(filled(layer, "weight", expected.shape), expected, rtol=1e-6)


def test_blobs_of_one_layer_differ_and_a_seed_repeats_them() -> None:
    fillers = 'weight_filler { type: "xavier" } bias_filler { type: "uniform" }'
    layer = f'type: "InnerProduct" inner_product_param {{ num_output: 3 {fillers} }}'
    weight, bias = (filled(layer, role, (3,)) for role in ("weight", "bias"))
    assert not np.array_equal(weight, bias)
    np.testing.assert_array_equal(weight, filled(layer, "weight", (3,)))
    assert not np.array_equal(weight, filled(layer, "weight", (3,), seed=1))


def test_an_unknown_filler_is_named() -> None:
    with pytest.raises(UnsupportedLayerError, match="unknown filler 'orthogonal'"):
        filled('type: "Scale" scale_param { filler { type: "orthogonal" } }', "gamma", (3,))


REFUSED = [
    ('type: "uniform" min: 1 max: 0', (2, 3), "min is 1 and max is 0"),
    ('type: "uniform" min: -inf max: inf', (2, 3), "min is -inf and max is inf"),
    ('type: "gaussian" std: 0', (2, 3), "std is 0"),
    ('type: "gaussian" std: -1', (2, 3), "std is -1"),
    ('type: "gaussian" std: "wide"', (2, 3), "parameter 'std' is 'wide', expected float"),
    ('type: "gaussian" sparse: 3', (2, 3), "sparse is 3"),
    ('type: "gaussian" sparse: 0', (), "sparse is 0"),
    ('type: "xavier" sparse: 1', (2, 3), "sparse is for gaussian, the type is xavier"),
    ('type: "xavier" variance_norm: FOO', (2, 3), "'variance_norm' is FOO, expected one of FAN_IN, FAN_OUT, AVERAGE"),
    ('type: "xavier"', (2, 0), "weight_filler of 2 x 0: there are no values to fill"),
    ('type: "xavier"', (0, 2), "weight_filler of 0 x 2: there are no values to fill"),
    ('type: "msra"', (), "weight_filler of scalar: the blob has no axes"),
    ('type: "positive_unitball"', (), "weight_filler of scalar: the blob has no axes"),
    ('type: "bilinear"', (2, 1, 2, 3), "weight_filler of 2 x 1 x 2 x 3: expected four axes, the last two equal"),
    ('type: "bilinear"', (2, 1, 3), "weight_filler of 2 x 1 x 3: expected four axes, the last two equal"),
]


@pytest.mark.parametrize(("filler", "shape", "message"), REFUSED)
def test_what_caffe_refuses_is_refused(filler: str, shape: tuple[int, ...], message: str) -> None:
    layer = f'type: "InnerProduct" inner_product_param {{ num_output: 2 weight_filler {{ {filler} }} }}'
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        filled(layer, "weight", shape)
    assert str(caught.value).startswith("layer 'l' (InnerProduct): ")


@pytest.mark.parametrize("filler", ['"uniform" min: 2 max: 2', '"gaussian" std: 1e-9 mean: 2 sparse: 2'])
def test_what_caffe_just_allows_is_filled(filler: str) -> None:
    layer = f'type: "InnerProduct" inner_product_param {{ num_output: 2 weight_filler {{ type: {filler} }} }}'
    np.testing.assert_allclose(filled(layer, "weight", (2, 3)), np.full((2, 3), 2, np.float32), rtol=1e-6)


@pytest.mark.parametrize(("norm", "fan"), [("FAN_IN", 3), ("FAN_OUT", 200), ("AVERAGE", 101.5), ("2", 101.5)])
def test_a_variance_is_normed_by_the_fan_that_is_named(norm: str, fan: float) -> None:
    filler = f'weight_filler {{ type: "xavier" variance_norm: {norm} }}'
    values = filled(f'type: "InnerProduct" inner_product_param {{ num_output: 200 {filler} }}', "weight", (200, 3))
    limit = np.sqrt(3 / fan)
    assert 0.97 * limit < np.abs(values).max() <= limit * (1 + 1e-6)
