"""What layers of segmentation compute, and those that work value by value."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bridge.schema.message import Message
from tests.references.common import Arrays, F, reference

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
