"""What pruned and quantised twins of layers compute, and layers that resize."""

from __future__ import annotations

import ast
import math

import numpy as np

from bridge.schema.message import Message
from tests.references.common import Arrays, F, c_round, reference
from tests.references.detection import prior_centres

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
    (image_height, image_width), centres = prior_centres(p, bottoms)
    boxes = []
    for rows in centres:
        for x, y in rows:
            for a, b in zip(p.all("width"), p.all("height"), strict=True):
                boxes += [(x - F(a) / 2.0) / image_width, (y - F(b) / 2.0) / image_height]
                boxes += [(x + F(a) / 2.0) / image_width, (y + F(b) / 2.0) / image_height]
    if p.get("clip", False):
        boxes = [min(max(value, 0), 1) for value in boxes]
    variances = [float(v) for v in p.all("variance")] or [0.1]
    spread = variances * (len(boxes) // 4) if len(variances) == 4 else variances * len(boxes)
    return [np.array([[boxes, spread]], F)]
