"""What the layers of Caffe's forks compute, in plain NumPy, written down from the forks' own sources.

Nothing here uses the package's layer classes: parameters are read from the definition, field
by field, and values are computed as the source does, loop by loop.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bridge.schema.message import Message

Arrays = Sequence[np.ndarray]
REFERENCES: dict[str, Callable[[Message, Arrays, Arrays], list[np.ndarray]]] = {}
"""Layer type -> function of (definition, blobs, bottoms) to tops."""

F = np.float32


def reference(*types: str) -> Callable[[Any], Any]:
    """Register the decorated function."""

    def decorate(function: Any) -> Any:
        for name in types:
            REFERENCES[name] = function
        return function

    return decorate


def c_round(x: float) -> int:
    """C's ``round``: halves away from zero."""
    return int(math.copysign(math.floor(abs(float(x)) + 0.5), x)) if abs(x) < 2**22 else int(x)


# ---- SSD ---------------------------------------------------------------------------------------


@reference("Permute")
def permute(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """permute_layer.cpp: every value moved by its own index."""
    (x,) = bottoms
    order = [int(n) for n in definition.message("permute_param").all("order")]
    order += [axis for axis in range(x.ndim) if axis not in order]
    y = np.empty([x.shape[axis] for axis in order], F)
    for index in np.ndindex(*y.shape):
        source = [0] * x.ndim
        for i, axis in enumerate(order):
            source[axis] = index[i]
        y[index] = x[tuple(source)]
    return [y]


@reference("Normalize", "L2Normalization", "L2Normalize", "L2Norm")
def normalize(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """normalize_layer.cpp of SSD; without norm_param and blobs that of caffe-windows."""
    (x,) = bottoms
    y = np.empty_like(x)
    p = definition.message("norm_param")
    for n in range(len(x)):
        if not blobs:
            y[n] = x[n] * F(1 / math.sqrt(float((x[n].astype(float) ** 2).sum())))
            continue
        eps, scale = float(p.get("eps", 1e-10)), blobs[0].reshape(-1)
        square = x[n].astype(float) ** 2
        norm = np.sqrt((square.sum() if p.get("across_spatial", True) else square.sum(axis=0)) + eps)
        for c in range(x.shape[1]):
            y[n, c] = x[n, c] / norm * (scale[0] if p.get("channel_shared", True) else scale[c])
    return [y]


@reference("PriorBox")
def prior_box(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """prior_box_layer.cpp of SSD: note the ints that min_size and max_size go through."""
    p = definition.message("prior_box_param")
    ratios = [1.0]
    for ratio in map(float, p.all("aspect_ratio")):
        if all(abs(ratio - known) >= 1e-6 for known in ratios):
            ratios.append(ratio)
            if p.get("flip", True):
                ratios.append(1 / ratio)
    (height, width), (image_height, image_width) = bottoms[0].shape[2:], bottoms[1].shape[2:]
    if "img_size" in p:
        image_height = image_width = p.get("img_size")
    elif "img_h" in p:
        image_height, image_width = p.get("img_h"), p.get("img_w")
    step_h, step_w = F(image_height) / F(height), F(image_width) / F(width)
    if "step" in p:
        step_h = step_w = F(p.get("step"))
    elif "step_h" in p:
        step_h, step_w = F(p.get("step_h")), F(p.get("step_w"))
    boxes = []
    for h in range(height):
        for w in range(width):
            x = (F(w) + F(p.get("offset", 0.5))) * step_w
            y = (F(h) + F(p.get("offset", 0.5))) * step_h
            for s, size in enumerate(p.all("min_size")):
                small = int(size)
                sides = [(small, small)]
                if p.all("max_size"):
                    sides.append((math.sqrt(small * int(p.all("max_size")[s])),) * 2)
                for ratio in ratios:
                    if abs(ratio - 1) >= 1e-6:
                        sides.append((small * math.sqrt(ratio), small / math.sqrt(ratio)))
                for a, b in sides:
                    boxes += [(x - a / 2) / image_width, (y - b / 2) / image_height]
                    boxes += [(x + a / 2) / image_width, (y + b / 2) / image_height]
            for side, density in zip(p.all("fixed_size"), p.all("density"), strict=True):
                shift = int(side / density)
                for r, c in np.ndindex(int(density), int(density)):
                    a, b = x - side / 2 + shift / 2 + c * shift, y - side / 2 + shift / 2 + r * shift
                    boxes += [(a - side / 2) / image_width, (b - side / 2) / image_height]
                    boxes += [(a + side / 2) / image_width, (b + side / 2) / image_height]
    if p.get("clip", False) or p.all("fixed_size"):
        boxes = [min(max(value, 0), 1) for value in boxes]
    variances = [float(v) for v in p.all("variance")] or [0.1]
    spread = variances * (len(boxes) // 4) if len(variances) == 4 else variances * len(boxes)
    return [np.array([[boxes, spread]], F)]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """JaccardOverlap of bbox_util.cpp, in float32."""
    if b[0] > a[2] or b[2] < a[0] or b[1] > a[3] or b[3] < a[1]:
        return 0.0
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    areas = [F(0) if box[2] < box[0] or box[3] < box[1] else (box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return float(inter / (areas[0] + areas[1] - inter))


def decode(kind: str, prior: np.ndarray, variance: np.ndarray, loc: np.ndarray) -> np.ndarray:
    """DecodeBBox of bbox_util.cpp; variance is 1 where it is encoded in the target."""
    v = variance * loc
    if kind == "CORNER":
        return prior + v
    width, height = prior[2] - prior[0], prior[3] - prior[1]
    if kind == "CORNER_SIZE":
        return prior + v * np.array([width, height, width, height], F)
    x, y = v[0] * width + (prior[0] + prior[2]) / F(2), v[1] * height + (prior[1] + prior[3]) / F(2)
    w, h = np.exp(v[2]) * width, np.exp(v[3]) * height
    return np.array([x - w / F(2), y - h / F(2), x + w / F(2), y + h / F(2)], F)


def suppressed(
    boxes: np.ndarray, scores: np.ndarray, threshold: float, overlap: float, eta: float, top_k: int
) -> list[int]:
    """ApplyNMSFast of bbox_util.cpp."""
    order = sorted((i for i, score in enumerate(scores) if score > threshold), key=lambda i: -scores[i])
    kept: list[int] = []
    for i in order[: top_k if top_k > -1 else None]:
        if all(jaccard(boxes[i], boxes[k]) <= F(overlap) for k in kept):
            kept.append(i)
            if eta < 1 and overlap > 0.5:
                overlap *= eta
    return kept


@reference("DetectionOutput")
def detection_output(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """detection_output_layer.cpp of SSD; with five bottoms that of RefineDet."""
    p = definition.message("detection_output_param")
    nms = p.message("nms_param")
    classes, shared = int(p.get("num_classes")), p.get("share_location", True)
    background, keep = p.get("background_label_id", 0), p.get("keep_top_k", -1)
    priors = bottoms[2].reshape(2, -1, 4)
    images, count = len(bottoms[0]), priors.shape[1]
    loc = bottoms[0].reshape(images, count, 1 if shared else classes, 4)
    conf = bottoms[1].reshape(images, count, classes)
    variance = np.ones_like(priors[1]) if p.get("variance_encoded_in_target", False) else priors[1]
    if len(bottoms) > 3:
        conf = conf.copy()
        conf[bottoms[3].reshape(images, count, 2)[..., 1] < F(p.get("objectness_score", 0.01))] = [1] + [0] * (
            classes - 1
        )
    rows = []
    for n in range(images):
        picked: dict[int, list[int]] = {}
        boxes: dict[int, np.ndarray] = {}
        for c in range(classes):
            if c == background:
                continue
            own = loc[n, :, 0 if shared else c]
            kind = p.text("code_type", "CORNER")
            start = priors[0]
            if len(bottoms) > 3:
                moved = bottoms[4].reshape(images, count, 4)[n]
                start = np.array([decode(kind, start[i], variance[i], moved[i]) for i in range(count)], F)
            boxes[c] = np.array([decode(kind, start[i], variance[i], own[i]) for i in range(count)], F)
            threshold = float(p.get("confidence_threshold", -math.inf))
            limits = float(nms.get("nms_threshold", 0.3)), float(nms.get("eta", 1)), int(nms.get("top_k", -1))
            picked[c] = suppressed(boxes[c], conf[n, :, c], threshold, *limits)
        pairs = [(c, i) for c, kept in picked.items() for i in kept]
        if -1 < keep < len(pairs):
            pairs = sorted(pairs, key=lambda pair: -conf[n, pair[1], pair[0]])[:keep]
            pairs = [pair for c in sorted(picked) for pair in pairs if pair[0] == c]
        rows += [[n, c, conf[n, i, c], *boxes[c][i]] for c, i in pairs]
    return [np.array(rows or [[n] + [-1] * 6 for n in range(images)], F).reshape(1, 1, -1, 7)]


# ---- PSPNet, SegNet, DeepLab -----------------------------------------------------------------------


@reference("BN")
def bn(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """bn_layer.cpp of PSPNet (new and old form) and of SegNet, at test time."""
    (x,), p = bottoms, definition.message("bn_param")
    y = np.empty_like(x)
    old = any(name in p for name in ("scale_filler", "shift_filler", "var_eps", "decay", "moving_average"))
    eps = p.get("var_eps", 1e-10) if old else p.get("eps", 1e-5)
    stored = bool(p.get("moving_average", False)) if old else True
    for c in range(x.shape[1]):
        gamma, beta = (float(blob.reshape(-1)[c]) for blob in blobs[:2])
        values = x[:, c].astype(float)
        mean, variance = values.mean(), values.var()
        if len(blobs) == 2 and p.text("bn_mode") == "INFERENCE":
            y[:, c] = values * gamma + beta
            continue
        if len(blobs) == 2:
            eps = 1e-9
        elif stored:
            mean, variance = (float(blob.reshape(-1)[c]) for blob in blobs[2:])
        y[:, c] = (values - mean) / math.sqrt(variance + float(eps)) * gamma + beta
    return [y]


@reference("Upsample")
def upsample(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """upsample_layer.cpp of SegNet, with a mask; of MobileNet-YOLO without."""
    p, x = definition.message("upsample_param"), bottoms[0]
    scale = p.get("scale", 2)
    a, b = p.get("scale_h", scale), p.get("scale_w", scale)
    height, width = x.shape[2] * a, x.shape[3] * b
    if len(bottoms) == 1:
        y = np.empty((*x.shape[:2], height, width), F)
        for h in range(height):
            for w in range(width):
                y[:, :, h, w] = x[:, :, h // a, w // b]
        return [y]
    height, width = height - bool(p.get("pad_out_h", False)), width - bool(p.get("pad_out_w", False))
    height, width = p.get("upsample_h", height), p.get("upsample_w", width)
    y = np.zeros((*x.shape[:2], height * width), F)
    for n, c, h, w in np.ndindex(*x.shape):
        y[n, c, int(bottoms[1][n, c, h, w])] = x[n, c, h, w]
    return [y.reshape(*x.shape[:2], height, width)]


@reference("Interp")
def interp(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """interp_layer.cpp and caffe_cpu_interp2 of DeepLab."""
    p, (x,) = definition.message("interp_param"), bottoms
    start, end = -p.get("pad_beg", 0), -p.get("pad_end", 0)
    x = x[:, :, start : x.shape[2] - end, start : x.shape[3] - end]
    (height, width), zoom, shrink = x.shape[2:], p.get("zoom_factor", 1), p.get("shrink_factor", 1)
    by_shrink = ((height - 1) // shrink + 1, (width - 1) // shrink + 1)
    if "shrink_factor" in p and "zoom_factor" not in p:
        out = by_shrink
    elif "zoom_factor" in p and "shrink_factor" not in p:
        out = (height + (height - 1) * (zoom - 1), width + (width - 1) * (zoom - 1))
    elif "height" in p and "width" in p:
        out = (p.get("height"), p.get("width"))
    else:
        out = tuple(n + (n - 1) * (zoom - 1) for n in by_shrink)
    y = np.empty((*x.shape[:2], *out), F)
    ratio = [F(a - 1) / F(b - 1) if b > 1 else F(0) for a, b in zip((height, width), out, strict=True)]
    for h2 in range(out[0]):
        for w2 in range(out[1]):
            h1r, w1r = ratio[0] * F(h2), ratio[1] * F(w2)
            h1, w1 = int(h1r), int(w1r)
            hp, wp = int(h1 < height - 1), int(w1 < width - 1)
            hl, wl = h1r - F(h1), w1r - F(w1)
            y[:, :, h2, w2] = (1 - hl) * ((1 - wl) * x[:, :, h1, w1] + wl * x[:, :, h1, w1 + wp]) + hl * (
                (1 - wl) * x[:, :, h1 + hp, w1] + wl * x[:, :, h1 + hp, w1 + wp]
            )
    return [y]


# ---- channels and pixels -----------------------------------------------------------------------------


@reference("ShuffleChannel")
def shuffle_channel(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """shuffle_channel_layer.cpp."""
    (x,), rows = bottoms, int(definition.message("shuffle_channel_param").get("group", 1))
    columns = x.shape[1] // rows
    y = np.empty_like(x)
    for i in range(rows):
        for j in range(columns):
            y[:, j * rows + i] = x[:, i * columns + j]
    return [y]


@reference("Axpy")
def axpy(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """axpy_layer.cpp of SENet: bottom 0 times bottom 1 plus bottom 2."""
    a, x, y = bottoms
    out = y.copy()
    for n, c in np.ndindex(*x.shape[:2]):
        out[n, c] += a[n, c].item() * x[n, c]
    return [out]


@reference("PixelShuffle")
def pixel_shuffle(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """The sub-pixel convolution's rearrangement (Shi et al., 2016)."""
    (x,), r = bottoms, int(definition.message("pixelshuffle_param").get("upscale_factor", 1))
    y = np.empty((len(x), x.shape[1] // r**2, x.shape[2] * r, x.shape[3] * r), F)
    for c, h, w in np.ndindex(*y.shape[1:]):
        y[:, c, h, w] = x[:, c * r * r + (h % r) * r + w % r, h // r, w // r]
    return [y]


@reference("Reorg")
def reorg(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """reorg_cpu of reorg_layer.hpp: indices into the bare memory, taken from the bottom's own extents."""
    (x,), p = bottoms, definition.message("reorg_param")
    stride, reverse = int(p.get("stride")), bool(p.get("reverse", False))
    count, channels, height, width = x.shape
    inner = channels // stride**2
    source, target = x.reshape(-1), np.empty(x.size, F)
    for n, c, h, w in np.ndindex(*x.shape):
        near = w + width * (h + height * (c + channels * n))
        w2, h2 = w * stride + c // inner % stride, h * stride + c // inner // stride
        far = w2 + width * stride * (h2 + height * stride * (c % inner + inner * n))
        if reverse:
            target[far] = source[near]
        else:
            target[near] = source[far]
    if reverse:
        return [target.reshape(count, inner, height * stride, width * stride)]
    return [target.reshape(count, channels * stride**2, height // stride, width // stride)]


@reference("CropCenter")
def crop_center(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """crop_center_layer.cpp of lltcggie's Caffe."""
    (x,) = bottoms
    crops = [int(n) for n in definition.message("crop_center_param").all("crop_size")]
    y = np.empty([n - 2 * crop for n, crop in zip(x.shape, crops, strict=True)], F)
    for index in np.ndindex(*y.shape):
        y[index] = x[tuple(i + crop for i, crop in zip(index, crops, strict=True))]
    return [y]


# ---- regions -------------------------------------------------------------------------------------------


@reference("ROIPooling")
def roi_pooling(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """roi_pooling_layer.cpp of Fast R-CNN."""
    p, x, rois = definition.message("roi_pooling_param"), bottoms[0], bottoms[1].reshape(-1, 5)
    rows, columns, scale = int(p.get("pooled_h")), int(p.get("pooled_w")), F(p.get("spatial_scale", 1))
    height, width = x.shape[2:]
    y = np.zeros((len(rois), x.shape[1], rows, columns), F)
    for n, roi in enumerate(rois):
        x1, y1, x2, y2 = (c_round(value * scale) for value in roi[1:])
        bin_h, bin_w = F(max(y2 - y1 + 1, 1)) / F(rows), F(max(x2 - x1 + 1, 1)) / F(columns)
        for i in range(rows):
            for j in range(columns):
                h, w = math.floor(F(i) * bin_h) + y1, math.floor(F(j) * bin_w) + x1
                h_end, w_end = math.ceil(F(i + 1) * bin_h) + y1, math.ceil(F(j + 1) * bin_w) + x1
                h, h_end = (min(max(value, 0), height) for value in (h, h_end))
                w, w_end = (min(max(value, 0), width) for value in (w, w_end))
                if h < h_end and w < w_end:
                    y[n, :, i, j] = x[int(roi[0]), :, h:h_end, w:w_end].max(axis=(1, 2))
    return [y]


@reference("PSROIPooling")
def psroi_pooling(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """psroi_pooling_layer.cu of R-FCN."""
    p, x, rois = definition.message("psroi_pooling_param"), bottoms[0], bottoms[1].reshape(-1, 5)
    scale, size, channels = F(p.get("spatial_scale")), int(p.get("group_size")), int(p.get("output_dim"))
    height, width = x.shape[2:]
    y = np.zeros((len(rois), channels, size, size), F)
    for n, c, i, j in np.ndindex(*y.shape):
        x1, y1, x2, y2 = (F(c_round(value)) for value in rois[n, 1:])
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + F(1)) * scale, (y2 + F(1)) * scale
        bin_w, bin_h = max(x2 - x1, F(0.1)) / F(size), max(y2 - y1, F(0.1)) / F(size)
        h, w = math.floor(F(i) * bin_h + y1), math.floor(F(j) * bin_w + x1)
        h_end, w_end = math.ceil(F(i + 1) * bin_h + y1), math.ceil(F(j + 1) * bin_w + x1)
        h, h_end = (min(max(value, 0), height) for value in (h, h_end))
        w, w_end = (min(max(value, 0), width) for value in (w, w_end))
        if h < h_end and w < w_end:
            y[n, c, i, j] = x[int(rois[n, 0]), (c * size + i) * size + j, h:h_end, w:w_end].astype(float).mean()
    return [y]


@reference("Proposal", "rpn.proposal_layer.ProposalLayer")
def proposal(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """proposal_layer.py of py-faster-rcnn with its defaults, and proposal_layer.cpp of PVANet."""
    python, p = definition.text("type") == "Python", definition.message("proposal_param")
    stride, base, low = int(p.get("feat_stride", 16)), int(p.get("base_size", 16)), int(p.get("min_size", 16))
    ratios, scales = [float(v) for v in p.all("ratio")], [float(v) for v in p.all("scale")]
    if python:
        text = definition.message("python_param").text("param_str")
        stride, ratios, scales = int(text.split("feat_stride': ")[1].split(",")[0]), [0.5, 1, 2], [8, 16, 32]
        if "scales" in text:
            scales = [float(v) for v in text.split("[")[1].split("]")[0].split(",")]
    anchors = []
    for ratio in ratios:
        width = math.sqrt(base * base / ratio)
        width = round(width) if python else math.floor(width + 0.5)
        height = round(width * ratio) if python else math.floor(width * ratio + 0.5)
        for scale in scales:
            a, b = 0.5 * (width * scale - 1), 0.5 * (height * scale - 1)
            centre = 0.5 * (base - 1)
            anchors.append([centre - a, centre - b, centre + a, centre + b])
    scores, shifts, info = bottoms[0], bottoms[1], bottoms[2].reshape(-1)
    least = (low * info[2], low * (info[2] if python or len(info) < 4 else info[3]))
    rows, out = [], []
    for n in range(len(scores)):
        boxes = []
        for h, w, k in np.ndindex(*scores.shape[2:], len(anchors)):
            x1, y1, x2, y2 = np.array(anchors[k]) + np.array([w, h, w, h]) * stride
            dx, dy, dw, dh = (float(v) for v in shifts[n, 4 * k : 4 * k + 4, h, w])
            wide, tall = x2 - x1 + 1, y2 - y1 + 1
            x, y = dx * wide + x1 + 0.5 * wide, dy * tall + y1 + 0.5 * tall
            wide, tall = math.exp(dw) * wide, math.exp(dh) * tall
            box = [x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2]
            box = [max(0.0, min(v, float(info[1 - i % 2]) - 1)) for i, v in enumerate(box)]
            fits = box[2] - box[0] + 1 >= least[1] and box[3] - box[1] + 1 >= least[0]
            if fits or not python:
                boxes.append((float(scores[n, len(anchors) + k, h, w]) * fits, box))
        boxes = sorted(boxes, key=lambda pair: -pair[0])[: p.get("pre_nms_topn", 6000)]
        kept: list[tuple[float, list[float]]] = []
        for score, box in boxes:
            if all(_overlap(box, other) <= p.get("nms_thresh", 0.7) for _, other in kept):
                kept.append((score, box))
        kept = kept[: p.get("post_nms_topn", 300)]
        rows += [[n, *box] for _, box in kept]
        out += [[score] if python else score for score, _ in kept]
    tops = [np.array(rows, F).reshape(-1, 5), np.array(out, F).reshape((-1, 1) if python else -1)]
    return tops[: len(definition.all("top"))]


def _overlap(a: list[float], b: list[float]) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    tall = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return wide * tall / (areas - wide * tall)


# ---- value by value ----------------------------------------------------------------------------------------


def _each(bottom: np.ndarray, function: Callable[[float], float]) -> list[np.ndarray]:
    values = [function(float(x)) for x in bottom.ravel()]
    return [np.array(values, F).reshape(bottom.shape)]


@reference("Clip")
def clip(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """clip_layer.cpp of BVLC Caffe's master."""
    p = definition.message("clip_param")
    low, high = p.get("min"), p.get("max")
    return _each(bottoms[0], lambda x: max(low, min(x, high)))


@reference("ReLU6")
def relu6(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """relu6_layer.cpp of MobileNet-YOLO."""
    slope = float(definition.message("relu6_param").get("negative_slope", 0))
    return _each(bottoms[0], lambda x: min(max(x, 0) + slope * min(x, 0), 6))


@reference("HardSigmoid")
def hard_sigmoid(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """hardsigmoid_layer.cpp, hard_sigmoid_layer.cpp."""
    p = definition.message("hardsigmoid_param" if "hardsigmoid_param" in definition else "hard_sigmoid_param")
    alpha, beta = p.get("alpha", 0.2), p.get("beta", 0.5)
    return _each(bottoms[0], lambda x: max(0, min(1, alpha * x + beta)))


@reference("HardSwish")
def hard_swish(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """hard_swish_layer.cpp."""
    return _each(bottoms[0], lambda x: x * min(max(x + 3, 0), 6) / 6)


@reference("Mish")
def mish(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """mish_layer.cpp."""
    return _each(bottoms[0], lambda x: x - 2 * x / ((math.exp(x) + 1) ** 2 + 1))


# ---- what the Caffe at hand leaves out ---------------------------------------------------------------------


@reference("BatchNorm")
def batch_norm(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """batch_norm_layer.cpp of BVLC Caffe (three blobs) and NVCaffe (five), at test time."""
    p = definition.message("batch_norm_param")
    x = bottoms[0].reshape(*bottoms[0].shape[:2], -1).astype(np.float64)
    eps, affine = p.get("eps", 1e-5), len(blobs) == 5
    top = np.empty(x.shape, F)
    for c in range(x.shape[1]):
        values = [x[n, c, i] for n in range(x.shape[0]) for i in range(x.shape[2])]
        if affine:
            mean, variance = blobs[0][c], blobs[1][c]
        elif p.get("use_global_stats", True):
            factor = 0 if blobs[2][0] == 0 else 1 / blobs[2][0]
            mean, variance = blobs[0][c] * factor, blobs[1][c] * factor
        else:
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
        y = (x[:, c] - mean) / math.sqrt(variance + (max(eps, 1e-5) if affine else eps))
        top[:, c] = y * blobs[3][c] + blobs[4][c] if affine else y
    return [top.reshape(bottoms[0].shape)]


@reference("Pooling")
def pooling(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """pooling_layer.cpp; STOCHASTIC, which it lacks, from pooling_layer.cu."""
    p, x = definition.message("pooling_param"), bottoms[0]
    (height, width), kind = x.shape[2:], p.get("pool", "MAX")
    kernel = [p.get(f"kernel_{side}", p.get("kernel_size", 0)) for side in "hw"]
    stride = [p.get(f"stride_{side}", p.get("stride", 1)) for side in "hw"]
    pad = [p.get(f"pad_{side}", p.get("pad", 0)) for side in "hw"]
    if p.get("global_pooling", False):
        kernel = [height, width]
    rounding = math.floor if p.get("round_mode") == "FLOOR" or not p.get("ceil_mode", True) else math.ceil
    out = [rounding((n + 2 * q - k) / s) + 1 for n, k, s, q in zip((height, width), kernel, stride, pad, strict=True)]
    if any(pad):
        out = [o - ((o - 1) * s >= n + q) for o, n, s, q in zip(out, (height, width), stride, pad, strict=True)]
    top, mask = (np.full((*x.shape[:2], *out), value, F) for value in (-3.402823466e38, -1))
    for n, c, ph, pw in np.ndindex(*top.shape):
        start = ph * stride[0] - pad[0], pw * stride[1] - pad[1]
        end = min(start[0] + kernel[0], height + pad[0]), min(start[1] + kernel[1], width + pad[1])
        area = (end[0] - start[0]) * (end[1] - start[1])
        places = [(h, w) for h in range(max(start[0], 0), min(end[0], height))
                  for w in range(max(start[1], 0), min(end[1], width))]  # fmt: skip
        values = [float(x[n, c, h, w]) for h, w in places]
        if kind == "MAX":
            for (h, w), value in zip(places, values, strict=True):
                if value > top[n, c, ph, pw]:
                    top[n, c, ph, pw], mask[n, c, ph, pw] = value, h * width + w
        elif kind == "AVE":
            top[n, c, ph, pw] = sum(values) / area if area else math.nan
        else:
            total = sum(values)
            top[n, c, ph, pw] = sum(value**2 for value in values) / total if total > 0 else 0
    return [top, mask][: len(definition.all("top"))]


@reference("ConvolutionDepthwise", "DepthwiseConvolution")
def depthwise_convolution(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """depthwise_conv_layer.cu: each output channel from one channel of the input."""
    p, (x,), weight = definition.message("convolution_param"), bottoms, blobs[0]

    def pair(field: str, side: str, default: int) -> tuple[int, int]:
        given = [int(n) for n in p.all(field)] or [default]
        return int(p.get(f"{side}_h", given[0])), int(p.get(f"{side}_w", given[-1]))

    kernel, stride, pad = pair("kernel_size", "kernel", 0), pair("stride", "stride", 1), pair("pad", "pad", 0)
    out = [int((n + 2 * b - k) / s) + 1 for n, k, s, b in zip(x.shape[2:], kernel, stride, pad, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *((b, b + k) for b, k in zip(pad, kernel, strict=True))])
    y = np.empty((len(x), len(weight), *out), F)
    for n, c, h, w in np.ndindex(*y.shape):
        at = (slice(h * stride[0], h * stride[0] + kernel[0]), slice(w * stride[1], w * stride[1] + kernel[1]))
        y[n, c, h, w] = (padded[(n, c * x.shape[1] // len(weight), *at)] * weight[c, 0]).sum()
        if p.get("bias_term", True):
            y[n, c, h, w] += blobs[1].reshape(-1)[c]
    return [y]


# ---- pruning and quantisation ------------------------------------------------------------------------


def convolved(definition: Message, weight: np.ndarray, bias: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """base_conv_layer.cpp for (N, C, H, W), with square windows: each value the sum over its window."""
    p = definition.message("convolution_param")
    stride, pad, group = (int(p.get(name, default)) for name, default in (("stride", 1), ("pad", 0), ("group", 1)))
    x = np.pad(x.astype(float), [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    outputs, inputs, kernel = weight.shape[:3]
    rows, columns = ((n - kernel) // stride + 1 for n in x.shape[2:])
    y = np.zeros((len(x), outputs, rows, columns))
    for n, c, i, j in np.ndindex(*y.shape):
        first = c // (outputs // group) * inputs
        window = x[n, first : first + inputs, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
        y[n, c, i, j] = (window * weight[c]).sum() + (0 if bias is None else float(bias[c]))
    return y.astype(F)


def twin(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """What a Convolution or an InnerProduct computes with other weights than those it has."""
    bias = blobs[1] if len(blobs) > 1 else None
    if "convolution_param" in definition:
        return [convolved(definition, blobs[0], bias, bottoms[0])]
    x = bottoms[0].reshape(len(bottoms[0]), -1).astype(float)
    weight = blobs[0].T if definition.message("inner_product_param").get("transpose", False) else blobs[0]
    return [(x @ weight.T.astype(float) + (0 if bias is None else bias)).astype(F)]


@reference("CConvolution", "DNSConvolution", "CInnerProduct", "DNSInnerProduct")
def pruned(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """dns_conv_layer.cpp: each blob times its mask, which stands behind both."""
    half = len(blobs) // 2
    return twin(definition, [blob * mask for blob, mask in zip(blobs[:half], blobs[half:], strict=True)], bottoms)


@reference("INQConvolution", "INQInnerProduct")
def incremental(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """inq_conv_layer.cpp at test time: the masks have no part."""
    return twin(definition, blobs[: len(blobs) // 2], bottoms)


def fixed_point(x: np.ndarray, bits: int, fraction: int) -> np.ndarray:
    """Trim2FixedPoint_cpu of base_ristretto_layer.cpp."""
    step = 2.0**-fraction
    values = [max(min(float(v), (2.0 ** (bits - 1) - 1) * step), -(2.0 ** (bits - 1)) * step) for v in x.reshape(-1)]
    return np.array([c_round(v / step) * step for v in values], F).reshape(x.shape)


@reference("ConvolutionRistretto", "FcRistretto")
def ristretto(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """conv_ristretto_layer.cpp at test time: input, weights and output are trimmed."""
    q = definition.message("quantization_param")
    forms = [
        (int(q.get(f"bw_{part}", 32)), int(q.get(f"fl_{part}", 16))) for part in ("layer_in", "params", "layer_out")
    ]
    inputs = [fixed_point(bottom, *forms[0]) for bottom in bottoms]
    (y,) = twin(definition, [fixed_point(blob, *forms[1]) for blob in blobs], inputs)
    return [fixed_point(y, *forms[2])]


@reference("FQConvolution", "FQInnerProduct")
def levels(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """fq_conv_layer.cu and quant_functions.cu: the weight in whole steps, worked out where none is stored."""
    *given, quant = blobs
    weight = given[0]
    number, step, low, high = int(quant[0]), float(quant[1]), int(quant[2]), int(quant[3])
    if step == 0 or low == high:
        least, most = float(weight.min()), float(weight.max())
        if least > -np.finfo(F).eps:
            low, high = 0, number - 1
            step = 2.0 ** math.ceil(math.log2(most / (number - 1)))
        else:
            high, low = (number - 1) // 2, math.trunc(-number / 2)
            step = 2.0 ** math.ceil(math.log2(max(least / low, most / high)))
    whole = [min(max(c_round(F(v) / F(step)), low), high) * step for v in weight.reshape(-1)]
    return twin(definition, [np.array(whole, F).reshape(weight.shape), *given[1:]], bottoms)


# ---- resizing, normalising -------------------------------------------------------------------------


@reference("GRN")
def grn(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """grn_layer.cpp of OpenVINO's toolbox."""
    (x,), bias = bottoms, float(definition.message("grn_param").get("bias", 1e-7))
    y = np.empty_like(x)
    for n, i, j in np.ndindex(len(x), *x.shape[2:]):
        y[n, :, i, j] = x[n, :, i, j] / math.sqrt(sum(float(v) ** 2 for v in x[n, :, i, j]) + bias)
    return [y]


@reference("BilinearInterpolate")
def bilinear_interpolate(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """bilinear_interpolate_layer.cpp of inisis/caffe: four neighbours of each place."""
    (x,), p = bottoms, definition.message("bilinear_interpolate_param")
    (height, width), align = x.shape[2:], p.get("align_corners", True)
    if "scale_factor" in p:
        rows, columns = (int(F(n) * F(p.get("scale_factor"))) for n in (height, width))
    else:
        rows, columns = int(p.get("dst_h", height)), int(p.get("dst_w", width))

    def place(i: int, old: int, new: int) -> tuple[int, float]:
        at = (old - 1) / (new - 1) * i if align and new > 1 else 0.0 if align else old / new * (i + 0.5) - 0.5
        at = max(min(at, old - 1), 0)
        first = max(min(math.floor(at), old - 2), 0)
        return first, at - first

    y = np.empty((*x.shape[:2], rows, columns), F)
    for i, j in np.ndindex(rows, columns):
        (h, a), (w, b) = place(i, height, rows), place(j, width, columns)
        upper = (1 - b) * x[:, :, h, w] + b * x[:, :, h, w + 1]
        lower = (1 - b) * x[:, :, h + 1, w] + b * x[:, :, h + 1, w + 1]
        y[:, :, i, j] = (1 - a) * upper + a * lower
    return [y]


@reference("Resample")
def resample(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """resample_layer.cu of FlowNet2, pixel by pixel."""
    x, p = bottoms[0], definition.message("resample_param")
    kind = p.text("type", "LINEAR")
    rows, columns = bottoms[1].shape[2:] if len(bottoms) > 1 else (int(p.get("height")), int(p.get("width")))
    height, width = x.shape[2:]
    fx, fy = float(F(width) / F(columns)), float(F(height) / F(rows))
    wide = p.get("antialias", True) and (fx > 1 or fy > 1)
    ax, ay = (1 / f if wide else 1.0 for f in (fx, fy))
    size = 4 if kind == "CUBIC" else 2
    rx, ry = (2 if f < 1 else math.ceil(size / a) for f, a in ((fx, ax), (fy, ay)))

    def weight(d: float) -> float:
        d = abs(d)
        if kind == "LINEAR":
            return max(1 - d, 0)
        return d * d * (1.5 * d - 2.5) + 1 if d <= 1 else d * (d * (-0.5 * d + 2.5) - 4) + 2 if d < 2 else 0.0

    y = np.zeros((*x.shape[:2], rows, columns), F)
    for i, j in np.ndindex(rows, columns):
        u, v = j * fx + fy / 2 - 0.5, i * fy + fx / 2 - 0.5
        middle = c_round(v), c_round(u)
        if kind == "NEAREST":
            y[:, :, i, j] = x[:, :, middle[0], middle[1]]
            continue
        total, sums = 0.0, np.zeros(x.shape[:2])
        for r in range(max(middle[0] - ry, 0), min(middle[0] + ry, height - 1) + 1):
            for c in range(max(middle[1] - rx, 0), min(middle[1] + rx, width - 1) + 1):
                w = ax * weight(ax * (u - c)) * ay * weight(ay * (v - r))
                sums, total = sums + w * x[:, :, r, c], total + w
        y[:, :, i, j] = sums / total if total else 0
    return [y]


@reference("spatial_dropout.SpatialDropoutLayer")
def spatial_dropout(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """spatial_dropout.py of caffe-enet in its phase TEST."""
    given = ast.literal_eval(definition.message("python_param").text("param_str"))
    return [(bottoms[0] * (1 / (1 - float(given["p"])))).astype(F)]


@reference("PriorBoxClustered")
def prior_box_clustered(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """prior_box_clustered_layer.cpp of OpenVINO's toolbox: PriorBox, with the sides as they are given."""
    p = definition.message("prior_box_param")
    (height, width), (image_height, image_width) = bottoms[0].shape[2:], bottoms[1].shape[2:]
    if "img_size" in p:
        image_height = image_width = p.get("img_size")
    elif "img_h" in p:
        image_height, image_width = p.get("img_h"), p.get("img_w")
    step_h, step_w = F(image_height) / F(height), F(image_width) / F(width)
    if "step" in p:
        step_h = step_w = F(p.get("step"))
    elif "step_h" in p:
        step_h, step_w = F(p.get("step_h")), F(p.get("step_w"))
    boxes = []
    for h in range(height):
        for w in range(width):
            x = (F(w) + F(p.get("offset", 0.5))) * step_w
            y = (F(h) + F(p.get("offset", 0.5))) * step_h
            for a, b in zip(p.all("width"), p.all("height"), strict=True):
                boxes += [(x - F(a) / 2.0) / image_width, (y - F(b) / 2.0) / image_height]
                boxes += [(x + F(a) / 2.0) / image_width, (y + F(b) / 2.0) / image_height]
    if p.get("clip", False):
        boxes = [min(max(value, 0), 1) for value in boxes]
    variances = [float(v) for v in p.all("variance")] or [0.1]
    spread = variances * (len(boxes) // 4) if len(variances) == 4 else variances * len(boxes)
    return [np.array([[boxes, spread]], F)]
