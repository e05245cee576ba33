"""Layers of detectors: boxes and regions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from bridge.testing import LayerCase, layer_case
from tests.strategies.common import SEEDS, images


@layer_case("PriorBox")
@st.composite
def prior_boxes(draw: Any, kind: str) -> LayerCase:
    small = draw(st.lists(st.floats(1, 60).map(lambda x: round(x, 2)), min_size=1, max_size=2))
    large = [a + draw(st.integers(1, 40)) for a in small] if draw(st.booleans()) else []
    ratios = draw(st.lists(st.sampled_from([1, 2, 3, 0.5, 0.33333334, 2.5]), max_size=3))
    variances = draw(st.sampled_from([[], [0.2], [0.1, 0.1, 0.2, 0.2]]))
    fields = {"min_size": small, "max_size": large, "aspect_ratio": ratios, "variance": variances}
    extra = " ".join(f"{name}: {str(draw(st.booleans())).lower()}" for name in ("flip", "clip"))
    image = draw(st.sampled_from(["", "img_size: 100", "img_h: 90 img_w: 120"]))
    step = draw(st.sampled_from(["", "step: 8", "step_h: 16 step_w: 7.5"]))
    body = " ".join(f"{name}: {value}" for name, values in fields.items() for value in values)
    body = f"prior_box_param {{ {body} {extra} {image} {step} offset: {draw(st.sampled_from([0.5, 0.25]))} }}"
    if draw(st.integers(0, 4)) == 0:
        squares = draw(st.lists(st.tuples(st.integers(4, 40), st.integers(1, 3)), min_size=1, max_size=2))
        sizes = " ".join(f"fixed_size: {side} density: {density}" for side, density in squares)
        wide = draw(st.lists(st.sampled_from([1, 2, 0.5, 2.5]), max_size=3))
        sizes += "".join(f" fixed_ratio: {ratio}" for ratio in wide)
        body = f"prior_box_param {{ {sizes} {image} {step} }}"
    cells, pixels = draw(images(1, 4)), draw(images(20, 60))
    return LayerCase(kind, body, (cells, pixels))


@layer_case("DetectionOutput", "DetectionBoxes")
@st.composite
def detection_outputs(draw: Any, kind: str) -> LayerCase:
    images, boxes, classes = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(2, 4))
    shared, background = draw(st.booleans()), draw(st.integers(-1, classes - 1))
    code = draw(st.sampled_from(["CORNER", "CENTER_SIZE", "CORNER_SIZE"]))
    fields = {
        "num_classes": classes,
        "share_location": str(shared).lower(),
        "background_label_id": background,
        "code_type": code,
        "variance_encoded_in_target": str(draw(st.booleans())).lower(),
        "keep_top_k": draw(st.sampled_from([-1, 0, 1, 3, 8, 200])),
        "confidence_threshold": draw(st.sampled_from([None, 0.01, 0.5, 2])),
        "nms_param": f"{{ nms_threshold: {draw(st.sampled_from([0, 0.3, 0.45, 0.9]))} "
        f"top_k: {draw(st.sampled_from([-1, 0, 2, 5, 400]))} }}",
    }
    body = " ".join(f"{name}: {value}" for name, value in fields.items() if value is not None)
    digits = draw(st.sampled_from([1, 6]))  # with one digit there are equal scores

    def priors(rng: Any, shape: Any) -> Any:
        low = rng.uniform(0, 0.7, (boxes, 2))
        corners = np.concatenate([low, low + rng.uniform(0.05, 0.5, (boxes, 2))], axis=1)
        return np.stack([corners, rng.uniform(0.1, 0.3, (boxes, 4))])

    data = {1: lambda rng, shape: rng.random(shape).round(digits), 2: priors}
    shapes = ((images, boxes * (1 if shared else classes) * 4), (images, boxes * classes), (1, 2, boxes * 4))
    if shared and draw(st.integers(0, 2)) == 0:  # RefineDet's two steps
        shapes, data[3] = (*shapes, (images, boxes * 2), (images, boxes * 4)), lambda rng, shape: rng.random(shape)
        body += f" objectness_score: {draw(st.sampled_from([0.01, 0.3]))}"
    tops = 2 if kind == "DetectionBoxes" else 1
    return LayerCase(kind, f"detection_output_param {{ {body} }}", shapes, tops, data=data, seed=draw(SEEDS))


def _regions(images: int, side: float) -> Callable[[Any, Any], Any]:
    """Fills rows (image, x1, y1, x2, y2), some of them outside or turned inside out, many at halves."""

    def fill(rng: Any, shape: Any) -> Any:
        rows = rng.uniform(-0.3, 1.3, (shape[0], 5)) * side
        rows = np.where(rng.random(rows.shape) < 0.5, rows.round() + 0.5, rows)
        rows[:, 0] = rng.integers(0, images, shape[0])
        return rows

    return fill


@layer_case("ROIPooling", "PSROIPooling")
@st.composite
def roi_poolings(draw: Any, kind: str) -> LayerCase:
    n, c, h, w = draw(images(3, 9))
    scale, regions = draw(st.sampled_from([1, 0.5, 0.0625])), draw(st.integers(1, 4))
    rows = draw(st.sampled_from([(regions, 5), (regions, 5, 1, 1)]))
    if kind == "ROIPooling":
        grid = f"pooled_h: {draw(st.integers(1, 7))} pooled_w: {draw(st.integers(1, 7))}"
        body = f"roi_pooling_param {{ {grid} spatial_scale: {scale} {draw(st.sampled_from(['', 'pad_ratio: 0.25']))} }}"
    else:
        size = draw(st.integers(1, 3))
        body = f"psroi_pooling_param {{ output_dim: {c} group_size: {size} spatial_scale: {scale} }}"
        c *= size * size
    return LayerCase(kind, body, ((n, c, h, w), rows), data={1: _regions(n, max(h, w) / scale)}, seed=draw(SEEDS))


@layer_case("Proposal", "rpn.proposal_layer.ProposalLayer")
@st.composite
def proposals(draw: Any, kind: str) -> LayerCase:
    python = kind != "Proposal"
    images, h, w = 1 if python else draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    scales = draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=2))
    if python:
        anchors = 3 * len(scales)
        text = f"'feat_stride': {draw(st.sampled_from([8, 16]))}, 'scales': {scales}"
        body = f'python_param {{ module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "{text}" }}'
    else:
        ratios = draw(st.lists(st.sampled_from([0.5, 0.667, 1, 2]), min_size=1, max_size=2))
        anchors = len(ratios) * len(scales)
        lists = " ".join([f"ratio: {r}" for r in ratios] + [f"scale: {s}" for s in scales])
        numbers = {
            "feat_stride": draw(st.sampled_from([8, 16])),
            "min_size": draw(st.sampled_from([4, 16])),
            "pre_nms_topn": draw(st.sampled_from([5, 6000])),
            "post_nms_topn": draw(st.sampled_from([3, 300])),
            "nms_thresh": draw(st.sampled_from([0.3, 0.7])),
        }
        body = f"proposal_param {{ {lists} {' '.join(f'{name}: {value}' for name, value in numbers.items())} }}"
    data = {
        0: lambda rng, shape: rng.random(shape) * 0.9 + 0.05,
        1: lambda rng, shape: rng.standard_normal(shape) * 0.3,
        2: lambda rng, shape: [h * 16 + 3, w * 16 - 2, 1.5, 1.25][: shape[-1]],
    }
    info = (1, 3 if python else draw(st.integers(3, 4)))
    bottoms = ((images, 2 * anchors, h, w), (images, 4 * anchors, h, w), info)
    return LayerCase("Python" if python else kind, body, bottoms, draw(st.integers(1, 2)), data, seed=draw(SEEDS))


@layer_case("Yolov3DetectionOutput", "YoloDetectionOutput")
@st.composite
def yolo_outputs(draw: Any, kind: str) -> LayerCase:
    third = kind == "Yolov3DetectionOutput"
    classes, number, count = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    sides = [draw(st.integers(1, 3)) for _ in range(count)]
    anchors = " ".join(
        f"biases: {draw(st.integers(5, 60)) if third else draw(st.sampled_from([0.5, 1.2, 2]))}" for _ in range(8)
    )
    masks = " ".join(f"mask: {draw(st.integers(0, 3))}" for _ in range(count * number))
    scales = " ".join(f"anchors_scale: {draw(st.sampled_from([8, 16]))}" for _ in range(count))
    least = draw(st.sampled_from([0.01, 0.2, 0.9]))
    fields = f"num_classes: {classes} num_box: {number} confidence_threshold: {least} nms_threshold: 0.45 {anchors}"
    fields += f" mask_group_num: {count} {masks} {scales}" if third else ""
    name = "yolov3_detection_output_param" if third else "yolo_detection_output_param"
    shapes = tuple((1, number * (5 + classes), side, side) for side in sides)
    return LayerCase(kind, f"{name} {{ {fields} }}", shapes, seed=draw(SEEDS))
