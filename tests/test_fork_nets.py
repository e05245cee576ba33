"""Nets of forks: detectors whose images come in any size, regions that come in any number."""

from __future__ import annotations

import numpy as np
import pytest

from bridge import engines
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.schema import Blob, Net, RawLayer, RawNet
from bridge.schema.message import Message
from tests.conftest import need

RTOL, ATOL = 1e-4, 1e-5
DETECTOR = """
input: "data" input_shape {{ dim: 1 dim: 3 dim: {height} dim: {width} }}
layer {{ name: "loc" type: "Convolution" bottom: "data" top: "loc"
         convolution_param {{ kernel_size: 3 stride: 4 num_output: 8 }} }}
layer {{ name: "conf" type: "Convolution" bottom: "data" top: "conf"
         convolution_param {{ kernel_size: 3 stride: 4 num_output: 6 }} }}
layer {{ name: "p1" type: "Permute" bottom: "loc" top: "p1" permute_param {{ order: 0 order: 2 order: 3 order: 1 }} }}
layer {{ name: "f1" type: "Flatten" bottom: "p1" top: "f1" }}
layer {{ name: "p2" type: "Permute" bottom: "conf" top: "p2" permute_param {{ order: 0 order: 2 order: 3 order: 1 }} }}
layer {{ name: "s2" type: "Reshape" bottom: "p2" top: "s2" reshape_param {{ shape {{ dim: 0 dim: -1 dim: 3 }} }} }}
layer {{ name: "m2" type: "Softmax" bottom: "s2" top: "m2" softmax_param {{ axis: 2 }} }}
layer {{ name: "f2" type: "Flatten" bottom: "m2" top: "f2" }}
layer {{ name: "priors" type: "PriorBox" bottom: "loc" bottom: "data" top: "priors"
         prior_box_param {{ min_size: 8 max_size: 16 variance: 0.1 }} }}
layer {{ name: "rows" type: "DetectionOutput" bottom: "f1" bottom: "f2" bottom: "priors" top: "rows"
         detection_output_param {{ num_classes: 3 code_type: CENTER_SIZE keep_top_k: 50 confidence_threshold: 0.3
                                   nms_param {{ nms_threshold: 0.45 top_k: 20 }} }} }}
"""
REGIONS = """
input: "cls" input_shape {{ dim: 1 dim: 18 dim: 5 dim: 6 }}
input: "box" input_shape {{ dim: 1 dim: 36 dim: 5 dim: 6 }}
input: "info" input_shape {{ dim: 1 dim: 3 }}
input: "x" input_shape {{ dim: 1 dim: 8 dim: 5 dim: 6 }}
layer {{ name: "proposal" type: "Python" bottom: "cls" bottom: "box" bottom: "info" top: "rois"
         python_param {{ module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "'feat_stride': 16" }} }}
layer {{ name: "pool" bottom: "x" bottom: "rois" top: "pool" {pooling} }}
layer {{ name: "flat" type: "Flatten" bottom: "pool" top: "flat" }}
layer {{ name: "prob" type: "Softmax" bottom: "flat" top: "prob" }}
"""
POOLING = {
    32: 'type: "ROIPooling" roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0.0625 }',
    8: 'type: "PSROIPooling" psroi_pooling_param { output_dim: 2 group_size: 2 spatial_scale: 0.0625 }',
}


def detector(height: int, width: int) -> Net:
    """A small SSD with seeded weights."""
    rng = np.random.default_rng(0)
    layers = []
    for name, shape in (("loc", (8, 3, 3, 3)), ("conf", (6, 3, 3, 3))):
        arrays = [(rng.standard_normal(n) * 0.3).astype(np.float32) for n in (shape, shape[:1])]
        layers.append(RawLayer(name, "Convolution", Message(name=name), tuple(map(Blob.of, arrays))))
    definition = prototxt.parse(DETECTOR.format(height=height, width=width))
    return assemble(RawNet("detector", tuple(layers)), definition)


def test_a_detector_serves_other_image_sizes_and_batches() -> None:
    need("onnxruntime")
    import onnx
    import onnxruntime as ort

    from bridge.onnx_export import to_onnx_model

    model, graph = to_onnx_model(detector(24, 32), inputs={"data": ["batch", 3, "height", "width"]})
    assert not graph.notes
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch, height, width in ((1, 24, 32), (3, 40, 24)):
        x = np.random.default_rng(height).standard_normal((batch, 3, height, width)).astype(np.float32)
        (rows,) = session.run(None, {"data": x})
        expected = engines.make("onnxruntime", detector(height, width)).outputs({"data": x})["rows"]
        assert rows.shape[2] > batch
        np.testing.assert_allclose(rows, expected, RTOL, ATOL)


@pytest.mark.parametrize("features", POOLING)
def test_regions_flow_on_in_any_number(features: int) -> None:
    need("onnxruntime")
    from bridge.onnx_export import to_onnx_model

    net = assemble(None, prototxt.parse(REGIONS.format(pooling=POOLING[features])))
    model, _ = to_onnx_model(net, dynamic_sides=False)
    rows, columns = model.graph.output[0].type.tensor_type.shape.dim
    assert (rows.dim_param, columns.dim_value) == ("rois_dim0", features)
    rng = np.random.default_rng(0)
    shapes = {name: shape for name, shape in net.inputs.items() if shape}
    inputs = {name: (rng.standard_normal(shape) * 0.3).astype(np.float32) for name, shape in shapes.items()}
    inputs["info"] = np.array([[80, 96, 1]], np.float32)
    prob = engines.make("onnxruntime", net).outputs(inputs)["prob"]
    assert 1 < len(prob) <= 300
    np.testing.assert_allclose(prob.sum(axis=1), 1, RTOL)
