"""Prototxts of models that Chainer and ChainerCV have as classes, with the layer names of their authors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from bridge.schema import Net
from tests import nets


def net_of(lines: Iterable[str], seed: int = 0) -> Net:
    """The net with random weights under which values stay near one, however deep it is."""
    return nets.make("\n".join(lines), seed=seed, draw=_steady)


def _steady(rng: np.random.Generator, role: str, shape: Any) -> np.ndarray:
    values = rng.standard_normal(shape, np.float32)
    if role == "weight":
        return values * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if role in ("variance", "gamma", "scale"):
        return (0.3 if role == "gamma" else 1) * (1 + 0.2 * np.tanh(values))
    return np.full(shape, 1.25) if role == "scale_factor" else 0.1 * values


def data(*shape: int, name: str = "data") -> str:
    dims = " ".join(f"dim: {n}" for n in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}'


def layer(name: str, kind: str, bottoms: str, parameters: str = "", *, top: str = "") -> str:
    wires = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}" {wires} top: "{top or name}" {parameters} }}'


def conv(name: str, bottom: str, count: int, kernel: int, more: str = "", *, relu: bool = True) -> list[str]:
    made = layer(
        name, "Convolution", bottom, f"convolution_param {{ num_output: {count} kernel_size: {kernel} {more} }}"
    )
    return [made, *([layer(f"relu_{name}", "ReLU", name, top=name)] if relu else [])]


def full(name: str, bottom: str, count: int) -> str:
    return layer(name, "InnerProduct", bottom, f"inner_product_param {{ num_output: {count} }}")


def pool(name: str, bottom: str, how: str) -> str:
    return layer(name, "Pooling", bottom, f"pooling_param {{ {how} }}")


def normed(conv_name: str, norm: str, scale: str, bottom: str, count: int, kernel: int, more: str = "",
           *, relu: bool = True) -> list[str]:  # fmt: skip
    """Convolution, BatchNorm, Scale, in place."""
    made = conv(conv_name, bottom, count, kernel, more, relu=False)
    made.append(layer(norm, "BatchNorm", conv_name, top=conv_name))
    made.append(layer(scale, "Scale", conv_name, "scale_param { bias_term: true }", top=conv_name))
    return [*made, *([layer(f"{conv_name}_relu", "ReLU", conv_name, top=conv_name)] if relu else [])]


# -- VGG ------------------------------------------------------------------------------------------


def vgg_trunk(depths: Iterable[int], *, last: bool = True) -> list[str]:
    made, bottom = [], "data"
    for block, (depth, width) in enumerate(zip(depths, (64, 128, 256, 512, 512), strict=True), 1):
        for i in range(1, depth + 1):
            made += conv(f"conv{block}_{i}", bottom, width, 3, "pad: 1")
            bottom = f"conv{block}_{i}"
        if block < 5 or last:
            made.append(pool(f"pool{block}", bottom, "pool: MAX kernel_size: 2 stride: 2"))
            bottom = f"pool{block}"
    return made


def hidden(bottom: str) -> list[str]:
    made = []
    for name in ("fc6", "fc7"):
        made += [full(name, bottom, 4096), layer(f"relu{name}", "ReLU", name, top=name)]
        bottom = name
    return made


def vgg(depths: Iterable[int] = (2, 2, 3, 3, 3)) -> list[str]:
    return [
        data(1, 3, 224, 224), *vgg_trunk(depths), *hidden("pool5"), full("fc8", "fc7", 1000),
        layer("prob", "Softmax", "fc8"),
    ]  # fmt: skip


def vgg19() -> list[str]:
    return vgg((2, 2, 4, 4, 4))


ROI = "roi_pooling_param { pooled_w: 7 pooled_h: 7 spatial_scale: 0.0625 }"


def faster_rcnn() -> list[str]:
    """The convolutions, the region proposal network up to its scores, and the head on given regions."""
    return [
        data(1, 3, 160, 160), data(4, 5, name="rois"), *vgg_trunk((2, 2, 3, 3, 3), last=False),
        *conv("rpn_conv/3x3", "conv5_3", 512, 3, "pad: 1"),
        *conv("rpn_cls_score", "rpn_conv/3x3", 18, 1, relu=False),
        *conv("rpn_bbox_pred", "rpn_conv/3x3", 36, 1, relu=False),
        layer("pool5", "ROIPooling", "conv5_3 rois", ROI),
        *hidden("pool5"), full("cls_score", "fc7", 21), full("bbox_pred", "fc7", 84),
    ]  # fmt: skip


# -- SSD ------------------------------------------------------------------------------------------


def ssd(size: int) -> list[str]:
    made = [data(1, 3, size, size), *vgg_trunk((2, 2, 3, 3, 3), last=False)]
    made.append(pool("pool5", "conv5_3", "pool: MAX kernel_size: 3 stride: 1 pad: 1"))
    made += conv("fc6", "pool5", 1024, 3, "pad: 6 dilation: 6") + conv("fc7", "fc6", 1024, 1)
    down = "pad: 1 stride: 2"
    extra = [(256, 512, 3, down), (128, 256, 3, down)]
    extra += (
        [(128, 256, 3, ""), (128, 256, 3, "")] if size == 300 else [(128, 256, 3, down)] * 2 + [(128, 256, 4, "pad: 1")]
    )
    sources, bottom = ["conv4_3_norm", "fc7"], "fc7"
    for block, (narrow, wide, kernel, how) in enumerate(extra, 6):
        made += conv(f"conv{block}_1", bottom, narrow, 1) + conv(f"conv{block}_2", f"conv{block}_1", wide, kernel, how)
        sources.append(bottom := f"conv{block}_2")
    norm = "norm_param { across_spatial: false channel_shared: false }"
    made.append(layer("conv4_3_norm", "Normalize", "conv4_3", norm))
    boxes = [4, 6, 6, 6, 4, 4] if size == 300 else [4, 6, 6, 6, 6, 4, 4]
    for source, count in zip(sources, boxes, strict=True):
        made += conv(f"{source}_mbox_loc", source, 4 * count, 3, "pad: 1", relu=False)
        made += conv(f"{source}_mbox_conf", source, 21 * count, 3, "pad: 1", relu=False)
    return made


# -- GoogLeNet --------------------------------------------------------------------------------------


def inception(name: str, bottom: str, widths: tuple[int, ...]) -> list[str]:
    one, reduce3, three, reduce5, five, projection = widths
    made = conv(f"{name}/1x1", bottom, one, 1) + conv(f"{name}/3x3_reduce", bottom, reduce3, 1)
    made += conv(f"{name}/3x3", f"{name}/3x3_reduce", three, 3, "pad: 1")
    made += conv(f"{name}/5x5_reduce", bottom, reduce5, 1)
    made += conv(f"{name}/5x5", f"{name}/5x5_reduce", five, 5, "pad: 2")
    made.append(pool(f"{name}/pool", bottom, "pool: MAX kernel_size: 3 stride: 1 pad: 1"))
    made += conv(f"{name}/pool_proj", f"{name}/pool", projection, 1)
    branches = " ".join(f"{name}/{branch}" for branch in ("1x1", "3x3", "5x5", "pool_proj"))
    return [*made, layer(f"{name}/output", "Concat", branches)]


def googlenet() -> list[str]:
    lrn, down = "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }", "pool: MAX kernel_size: 3 stride: 2"
    made = [data(1, 3, 224, 224), *conv("conv1/7x7_s2", "data", 64, 7, "pad: 3 stride: 2")]
    made += [pool("pool1/3x3_s2", "conv1/7x7_s2", down), layer("pool1/norm1", "LRN", "pool1/3x3_s2", lrn)]
    made += conv("conv2/3x3_reduce", "pool1/norm1", 64, 1) + conv("conv2/3x3", "conv2/3x3_reduce", 192, 3, "pad: 1")
    made += [layer("conv2/norm2", "LRN", "conv2/3x3", lrn), pool("pool2/3x3_s2", "conv2/norm2", down)]
    bottom = "pool2/3x3_s2"
    for name, widths in {
        "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64), "4a": (192, 96, 208, 16, 48, 64),
        "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64), "4d": (112, 144, 288, 32, 64, 64),
        "4e": (256, 160, 320, 32, 128, 128), "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
    }.items():  # fmt: skip
        made += inception(f"inception_{name}", bottom, widths)
        bottom = f"inception_{name}/output"
        if name in ("3b", "4e"):
            made.append(pool(f"pool{name[0]}/3x3_s2", bottom, down))
            bottom = f"pool{name[0]}/3x3_s2"
    made.append(pool("pool5/7x7_s1", bottom, "pool: AVE kernel_size: 7 stride: 1"))
    return [*made, full("loss3/classifier", "pool5/7x7_s1", 1000), layer("prob", "Softmax", "loss3/classifier")]


# -- ResNet -----------------------------------------------------------------------------------------

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet(depth: int, size: int = 224) -> list[str]:
    """Of He's: the shortcut comes first, strides in the first convolution, a bias only in conv1 of 50 layers."""
    made = [data(1, 3, size, size)]
    made += normed("conv1", "bn_conv1", "scale_conv1", "data", 64, 7,
                   f"pad: 3 stride: 2 bias_term: {'true' if depth == 50 else 'false'}")  # fmt: skip
    made.append(pool("pool1", "conv1", "pool: MAX kernel_size: 3 stride: 2"))
    bottom = "pool1"
    for stage, count in enumerate(BLOCKS[depth], 2):
        for block in range(count):
            letter = "abcdef"[block] if depth == 50 or block == 0 or stage in (2, 5) else f"b{block}"
            made += bottleneck(f"{stage}{letter}", bottom, 32 << (stage - 1), 2 if stage > 2 else 1, block == 0)
            bottom = f"res{stage}{letter}"
    made.append(pool("pool5", bottom, "pool: AVE global_pooling: true"))
    return [*made, full("fc1000", "pool5", 1000), layer("prob", "Softmax", "fc1000")]


def bottleneck(name: str, bottom: str, width: int, stride: int, first: bool) -> list[str]:
    def part(branch: str, source: str, count: int, kernel: int, more: str, relu: bool) -> list[str]:
        names = (f"{kind}{name}_branch{branch}" for kind in ("res", "bn", "scale"))
        return normed(*names, source, count, kernel, f"bias_term: false {more}", relu=relu)

    step = f"stride: {stride}" if first else ""
    made = part("1", bottom, 4 * width, 1, step, relu=False) if first else []
    made += part("2a", bottom, width, 1, step, relu=True)
    made += part("2b", f"res{name}_branch2a", width, 3, "pad: 1", relu=True)
    made += part("2c", f"res{name}_branch2b", 4 * width, 1, "", relu=False)
    made.append(layer(f"res{name}", "Eltwise", f"{f'res{name}_branch1' if first else bottom} res{name}_branch2c"))
    return [*made, layer(f"res{name}_relu", "ReLU", f"res{name}", top=f"res{name}")]


def senet(groups: int = 1, size: int = 224) -> list[str]:
    """SE-ResNet-50, and with 32 groups SE-ResNeXt-50, by the names of their authors."""
    no_bias = "bias_term: false"
    made = [data(1, 3, size, size)]
    made += normed(
        "conv1/7x7_s2", "conv1/7x7_s2/bn", "conv1/7x7_s2/bn/scale", "data", 64, 7, f"{no_bias} pad: 3 stride: 2"
    )
    made.append(pool("pool1/3x3_s2", "conv1/7x7_s2", "pool: MAX kernel_size: 3 stride: 2"))
    bottom = "pool1/3x3_s2"
    for stage, count in enumerate(BLOCKS[50], 2):
        width, wide = (32 << (stage - 1)) * (1 if groups == 1 else 2), 128 << (stage - 1)
        for block in range(1, count + 1):
            name, step = f"conv{stage}_{block}", "stride: 2" if stage > 2 and block == 1 else ""
            first, second = (step, "") if groups == 1 else ("", step)

            def part(kind: str, source: str, n: int, kernel: int, more: str, relu: bool, name: str = name) -> list[str]:
                own = f"{name}_{kind}"
                return normed(own, f"{own}/bn", f"{own}/bn/scale", source, n, kernel, f"{no_bias} {more}", relu=relu)

            made += part("1x1_reduce", bottom, width, 1, first, True)
            made += part("3x3", f"{name}_1x1_reduce", width, 3, f"pad: 1 group: {groups} {second}", True)
            made += part("1x1_increase", f"{name}_3x3", wide, 1, "", False)
            made.append(pool(f"{name}_global_pool", f"{name}_1x1_increase", "pool: AVE global_pooling: true"))
            made += conv(f"{name}_1x1_down", f"{name}_global_pool", wide // 16, 1)
            made += conv(f"{name}_1x1_up", f"{name}_1x1_down", wide, 1, relu=False)
            made.append(layer(f"{name}_prob", "Sigmoid", f"{name}_1x1_up"))
            shortcut = bottom
            if block == 1:
                made += part("1x1_proj", bottom, wide, 1, step, False)
                shortcut = f"{name}_1x1_proj"
            made.append(layer(name, "Axpy", f"{name}_prob {name}_1x1_increase {shortcut}"))
            made.append(layer(f"{name}/relu", "ReLU", name, top=name))
            bottom = name
    made.append(pool("pool5", bottom, "pool: AVE global_pooling: true"))
    return [*made, full("classifier", "pool5", 1000), layer("prob", "Softmax", "classifier")]


# -- SegNet -----------------------------------------------------------------------------------------


def segnet_basic() -> list[str]:
    """Of the SegNet tutorial, with BatchNorm and Scale in the place of its fork's BN."""
    made = [data(1, 3, 64, 96), layer("norm", "LRN", "data", "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")]
    bottom = "norm"
    for i in range(1, 5):
        made += normed(f"conv{i}", f"conv{i}_bn", f"conv{i}_scale", bottom, 64, 7, "pad: 3 bias_term: false")
        pooling = "pooling_param { pool: MAX kernel_size: 2 stride: 2 }"
        made.append(
            layer(f"pool{i}", "Pooling", f"conv{i}", pooling).replace(
                " pooling_param", f' top: "mask{i}" pooling_param'
            )
        )
        bottom = f"pool{i}"
    for i in (4, 3, 2, 1):
        made.append(layer(f"upsample{i}", "Upsample", f"{bottom} mask{i}", "upsample_param { scale: 2 }"))
        name = f"conv_decode{i}"
        made += normed(
            name, f"{name}_bn", f"{name}_scale", f"upsample{i}", 64, 7, "pad: 3 bias_term: false", relu=False
        )
        bottom = name
    return [*made, *conv("conv_classifier", bottom, 11, 1, relu=False)]
