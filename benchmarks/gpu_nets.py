"""AlexNet, GoogLeNet and ResNet-50 with a loss: as prototxts, as Chainer's links and as PyTorch's modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.chain import alexnet as deployed_alexnet
from benchmarks.chain import by_hand_alexnet

SIZES = {"alexnet": 227, "googlenet": 224, "resnet50": 224}


def layer(name: str, kind: str, bottoms: str, params: str = "", top: str = "") -> str:
    read = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}" {read} top: "{top or name}" {params} }}\n'


def convolution(
    name: str, bottom: str, outputs: int, kernel: int, stride: int = 1, pad: int = 0, bias: str = ""
) -> str:
    more = f"num_output: {outputs} kernel_size: {kernel} stride: {stride} pad: {pad} {bias}"
    filler = 'weight_filler { type: "msra" }'
    return layer(name, "Convolution", bottom, f"convolution_param {{ {more} {filler} }}")


def pooling(name: str, bottom: str, params: str) -> str:
    return layer(name, "Pooling", bottom, f"pooling_param {{ {params} }}")


def dense(name: str, bottom: str, outputs: int) -> str:
    params = f'inner_product_param {{ num_output: {outputs} weight_filler {{ type: "xavier" }} }}'
    return layer(name, "InnerProduct", bottom, params)


# ---- GoogLeNet -----------------------------------------------------------------------------------


def rectified(name: str, bottom: str, outputs: int, kernel: int, stride: int = 1, pad: int = 0) -> str:
    return convolution(name, bottom, outputs, kernel, stride, pad) + layer(f"{name}_relu", "ReLU", name, top=name)


def inception(name: str, bottom: str, one: int, r3: int, three: int, r5: int, five: int, pool: int) -> str:
    return (
        rectified(f"{name}_1", bottom, one, 1)
        + rectified(f"{name}_3r", bottom, r3, 1) + rectified(f"{name}_3", f"{name}_3r", three, 3, pad=1)
        + rectified(f"{name}_5r", bottom, r5, 1) + rectified(f"{name}_5", f"{name}_5r", five, 5, pad=2)
        + pooling(f"{name}_pool", bottom, "kernel_size: 3 stride: 1 pad: 1")
        + rectified(f"{name}_p", f"{name}_pool", pool, 1)
        + layer(name, "Concat", f"{name}_1 {name}_3 {name}_5 {name}_p")
    )  # fmt: skip


_LRN = "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }"
_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64), "pool3": (),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64), "4e": (256, 160, 320, 32, 128, 128), "pool4": (),
    "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


def googlenet() -> str:
    """Without the two losses on the side."""
    text = rectified("conv1", "data", 64, 7, 2, 3) + pooling("pool1", "conv1", "kernel_size: 3 stride: 2")
    text += layer("norm1", "LRN", "pool1", _LRN) + rectified("conv2r", "norm1", 64, 1)
    text += rectified("conv2", "conv2r", 192, 3, pad=1) + layer("norm2", "LRN", "conv2", _LRN)
    text += pooling("pool2", "norm2", "kernel_size: 3 stride: 2")
    bottom = "pool2"
    for name, widths in _INCEPTIONS.items():
        text += inception(name, bottom, *widths) if widths else pooling(name, bottom, "kernel_size: 3 stride: 2")
        bottom = name
    return text + pooling("pool5", bottom, "pool: AVE global_pooling: true") + dense("fc", "pool5", 1000)


# ---- ResNet-50 -----------------------------------------------------------------------------------


def normalised(
    name: str, bottom: str, outputs: int, kernel: int, stride: int = 1, pad: int = 0, relu: bool = True
) -> str:
    text = convolution(name, bottom, outputs, kernel, stride, pad, "bias_term: false")
    text += layer(f"{name}_bn", "BatchNorm", name, top=name)
    text += layer(f"{name}_scale", "Scale", name, "scale_param { bias_term: true }", top=name)
    return text + (layer(f"{name}_relu", "ReLU", name, top=name) if relu else "")


def bottleneck(name: str, bottom: str, width: int, stride: int, first: bool) -> str:
    text = normalised(f"{name}_a", bottom, width, 1, stride) + normalised(f"{name}_b", f"{name}_a", width, 3, pad=1)
    text += normalised(f"{name}_c", f"{name}_b", 4 * width, 1, relu=False)
    if first:
        text += normalised(f"{name}_s", bottom, 4 * width, 1, stride, relu=False)
    text += layer(name, "Eltwise", f"{name}_s {name}_c" if first else f"{bottom} {name}_c")
    return text + layer(f"{name}_relu", "ReLU", name, top=name)


def resnet50() -> str:
    text = normalised("conv1", "data", 64, 7, 2, 3) + pooling("pool1", "conv1", "kernel_size: 3 stride: 2")
    bottom = "pool1"
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 2):
        for block in range(blocks):
            name = f"res{stage}{chr(97 + block)}"
            text += bottleneck(name, bottom, width, 2 if stage > 2 and not block else 1, not block)
            bottom = name
    return text + pooling("pool5", bottom, "pool: AVE global_pooling: true") + dense("fc", "pool5", 1000)


# ---- all -----------------------------------------------------------------------------------------


def trained(name: str, batch: int, size: int) -> str:
    """The prototxt of a net with a loss, for a batch of square images."""
    head = f'input: "data" input_shape {{ dim: {batch} dim: 3 dim: {size} dim: {size} }}\n'
    head += f'input: "label" input_shape {{ dim: {batch} }}\n'
    if name == "alexnet":
        lines = deployed_alexnet().splitlines()[1:-1]  # without the input and the softmax
        body, scores = "\n".join(lines) + "\n", "fc8"
    else:
        body, scores = {"googlenet": googlenet, "resnet50": resnet50}[name](), "fc"
    return head + body + layer("loss", "SoftmaxWithLoss", f"{scores} label")


def by_links(chainer: Any, name: str) -> Callable[[Any], Any]:
    """The net by Chainer's own links: a chain that computes scores, or the softmax of them, from images."""
    vision = chainer.links.model.vision
    if name == "alexnet":
        return by_hand_alexnet(chainer)  # type: ignore[no-any-return]
    if name == "googlenet":
        return vision.googlenet.GoogLeNet(pretrained_model=None)  # type: ignore[no-any-return]
    return vision.resnet.ResNet50Layers(pretrained_model=None)  # type: ignore[no-any-return]


def scores_of(chain: Any, name: str, x: Any) -> Any:
    """What the loss is computed from."""
    if name == "alexnet":
        return chain(x)
    layer = {"googlenet": "loss3_fc", "resnet50": "fc6"}[name]
    return chain.forward(x, layers=[layer])[layer]


def in_pytorch(name: str) -> Any:
    """The net of torchvision, with its own initial values; ``None`` where it is not installed."""
    try:
        from torchvision import models
    except ImportError:
        return None
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return getattr(models, name)(weights=None, **options)
