"""What SSD and the detectors of regions compute."""

from __future__ import annotations

import math

import numpy as np

from bridge.schema.message import Message
from tests.references.common import Arrays, F, c_round, reference

# ---- SSD ---------------------------------------------------------------------------------------


@reference("Permute", "Transpose")
def permute(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """permute_layer.cpp, and transpose_layer.cpp of caffe_ocr: every value moved by its own index."""
    (x,) = bottoms
    named = definition.message("permute_param").all("order") + definition.message("transpose_param").all("dim")
    order = [int(n) for n in named]
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


def prior_centres(p: Message, bottoms: Arrays) -> tuple[tuple[int, int], list[list[tuple[F, F]]]]:
    """The image's height and width, and for each cell of the first bottom the x and y of its boxes' centre."""
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
    offset = F(p.get("offset", 0.5))
    centres = [[((F(w) + offset) * step_w, (F(h) + offset) * step_h) for w in range(width)] for h in range(height)]
    return (image_height, image_width), centres


def dense_boxes(p: Message, x: float, y: float, image: tuple[int, int]) -> list[float]:
    """The boxes of fixed_size around one centre: OpenVINO's prior_box, where a shift is a whole number."""
    boxes = []
    for side, density in zip(p.all("fixed_size"), p.all("density"), strict=True):
        shift = int(side / density)
        for ratio in map(float, p.all("fixed_ratio") or [1]):
            width, height = side * math.sqrt(ratio), side / math.sqrt(ratio)
            for r, c in np.ndindex(int(density), int(density)):
                a, b = x - side / 2 + shift / 2 + c * shift, y - side / 2 + shift / 2 + r * shift
                boxes += [(a - width / 2) / image[0], (b - height / 2) / image[1]]
                boxes += [(a + width / 2) / image[0], (b + height / 2) / image[1]]
    return boxes


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
    (image_height, image_width), centres = prior_centres(p, bottoms)
    boxes = []
    for rows in centres:
        for x, y in rows:
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
            boxes += dense_boxes(p, float(x), float(y), (image_width, image_height))
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


# ---- regions -------------------------------------------------------------------------------------------


@reference("ROIPooling")
def roi_pooling(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """roi_pooling_layer.cpp of Fast R-CNN, and of MS-CNN where regions are padded."""
    p, x, rois = definition.message("roi_pooling_param"), bottoms[0], bottoms[1].reshape(-1, 5)
    rows, columns, scale = int(p.get("pooled_h")), int(p.get("pooled_w")), F(p.get("spatial_scale", 1))
    height, width = x.shape[2:]
    y = np.zeros((len(rois), x.shape[1], rows, columns), F)
    for n, roi in enumerate(rois):
        wide, high = (roi[3:] - roi[1:3] + F(1)) * F(p.get("pad_ratio", 0))
        grown = roi[1] - wide, roi[2] - high, roi[3] + wide, roi[4] + high
        x1, y1, x2, y2 = (c_round(value * scale) for value in grown)
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


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-float(x)))


def yolo_rows(predictions: list[tuple[float, int, tuple[float, ...]]], limit: float) -> list[np.ndarray]:
    """ApplyNms of yolov3_detection_output_layer.cpp: boxes of all classes in order of score, each (x, y, w, h)."""

    def overlap(a: float, w: float, b: float, v: float) -> float:
        return min(a + w / 2, b + v / 2) - max(a - w / 2, b - v / 2)

    def united(a: tuple[float, ...], b: tuple[float, ...]) -> float:
        w, h = overlap(a[0], a[2], b[0], b[2]), overlap(a[1], a[3], b[1], b[3])
        inter = 0.0 if w < 0 or h < 0 else w * h
        return inter / (a[2] * a[3] + b[2] * b[3] - inter)

    kept: list[tuple[float, int, tuple[float, ...]]] = []
    for prediction in sorted(predictions, key=lambda p: -p[0]):
        if all(united(other[2], prediction[2]) < limit for other in kept):
            kept.append(prediction)
    rows = [[0, c + 1, s, x - w / 2, y - h / 2, x + w / 2, y + h / 2] for s, c, (x, y, w, h) in kept]
    return [np.array(rows or [[0] + [-1] * 6], F).reshape(1, 1, -1, 7)]


@reference("Yolov3DetectionOutput", "YoloDetectionOutput")
def yolo(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """yolov3_detection_output_layer.cpp and yolo_detection_output_layer.cpp of MobileNet-YOLO, cell by cell."""
    third = "yolov3_detection_output_param" in definition
    p = definition.message("yolov3_detection_output_param" if third else "yolo_detection_output_param")
    classes, number = int(p.get("num_classes", 20)), int(p.get("num_box", 3 if third else 5))
    biases, least = [float(v) for v in p.all("biases")], float(p.get("confidence_threshold", 0.01))
    found: list[tuple[float, int, tuple[float, ...]]] = []
    for t, bottom in enumerate(bottoms):
        height, width = bottom.shape[2:]
        scale = int(p.all("anchors_scale")[t]) if third else 1
        cells = bottom.reshape(number, 5 + classes, height, width)
        for n, i, j in np.ndindex(number, height, width):
            values = cells[n, :, i, j].astype(float)
            anchor = int(p.all("mask")[t * number + n]) if third else n
            box = (
                (j + sigmoid(values[0])) / width,
                (i + sigmoid(values[1])) / height,
                math.exp(values[2]) * biases[2 * anchor] / (width * scale),
                math.exp(values[3]) * biases[2 * anchor + 1] / (height * scale),
            )
            if third:
                scores = [sigmoid(v) * sigmoid(values[4]) for v in values[5:]]
                found += [(score, c, box) for c, score in enumerate(scores) if F(score) > F(least)]
            else:
                powers = np.exp(values[5:] - values[5:].max())
                best = int(np.argmax(powers))
                score = float(powers[best] / powers.sum() * sigmoid(values[4]))
                found += [(score, best, box)] if F(score) >= F(least) else []
    return yolo_rows(found, float(F(p.get("nms_threshold", 0.45))))


@reference("DetectionBoxes")
def detection_boxes(definition: Message, blobs: Arrays, bottoms: Arrays) -> list[np.ndarray]:
    """The boxes and scores that detection_output_layer.cpp chooses among."""
    p = definition.message("detection_output_param")
    classes, shared = int(p.get("num_classes")), p.get("share_location", True)
    labels = [c for c in range(classes) if c != p.get("background_label_id", 0)]
    priors = bottoms[2].reshape(2, -1, 4)
    images, count = len(bottoms[0]), priors.shape[1]
    loc = bottoms[0].reshape(images, count, 1 if shared else classes, 4)
    conf = bottoms[1].reshape(images, count, classes).copy()
    variance = np.ones_like(priors[1]) if p.get("variance_encoded_in_target", False) else priors[1]
    kind = p.text("code_type", "CORNER")
    own = [0] if shared else labels
    boxes = np.zeros((images, len(own), count, 4), F)
    for n, k, i in np.ndindex(*boxes.shape[:3]):
        start = priors[0][i]
        if len(bottoms) > 3:
            start = decode(kind, start, variance[i], bottoms[4].reshape(images, count, 4)[n, i])
            if bottoms[3].reshape(images, count, 2)[n, i, 1] < F(p.get("objectness_score", 0.01)):
                conf[n, i] = [1] + [0] * (classes - 1)
        boxes[n, k, i] = decode(kind, start, variance[i], loc[n, i, own[k]])
    return [boxes[:, 0] if shared else boxes, conf[:, :, labels].transpose(0, 2, 1)]
