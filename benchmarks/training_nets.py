"""The nets of ``chain.py --torch`` as prototxts without a loss."""

from __future__ import annotations

Plan = tuple[int, tuple[int, int], tuple[int, int], int]
INCEPTIONS: dict[str, Plan] = {
    "3a": (64, (96, 128), (16, 32), 32), "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64), "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64), "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128), "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}  # fmt: skip
"""Outputs of GoogLeNet's branches: 1x1, 3x3 with its reduction, 5x5 with its reduction, and behind the pooling.

Source: C. Szegedy et al., Going Deeper with Convolutions, 2015, table 1.
"""
SEPARABLE = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
"""Outputs and stride of MobileNet's pairs of a depthwise and a pointwise convolution.

Source: A. Howard et al., MobileNets, 2017, table 1.
"""


class _Text:
    """A prototxt under way."""

    def __init__(self, size: int) -> None:
        shape = f"shape {{ dim: 4 dim: 3 dim: {size} dim: {size} }}"
        self.lines = [f'layer {{ name: "data" type: "Input" top: "data" input_param {{ {shape} }} }}']

    def add(self, kind: str, bottoms: str | list[str], parameters: str = "", inplace: bool = False) -> str:
        """Add a layer; returns its top."""
        names = [bottoms] if isinstance(bottoms, str) else bottoms
        name = f"{kind.lower()}{len(self.lines)}"
        top = names[0] if inplace else name
        read = " ".join(f'bottom: "{bottom}"' for bottom in names)
        self.lines.append(f'layer {{ name: "{name}" type: "{kind}" {read} top: "{top}" {parameters} }}')
        return top

    def relu(self, bottom: str) -> str:
        return self.add("ReLU", bottom, inplace=True)

    def conv(self, bottom: str, outputs: int, kernel: int, more: str = "") -> str:
        parameters = f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} {more} }}"
        return self.relu(self.add("Convolution", bottom, parameters))

    def norm_conv(self, bottom: str, outputs: int, kernel: int, more: str = "", relu: bool = True) -> str:
        parameters = f"num_output: {outputs} kernel_size: {kernel} pad: {kernel // 2} bias_term: false {more}"
        y = self.add("Convolution", bottom, f"convolution_param {{ {parameters} }}")
        self.add("BatchNorm", y, "batch_norm_param { use_global_stats: true }", inplace=True)
        self.add("Scale", y, "scale_param { bias_term: true }", inplace=True)
        return self.relu(y) if relu else y

    def pool(self, bottom: str, parameters: str = "pool: MAX kernel_size: 3 stride: 2") -> str:
        return self.add("Pooling", bottom, f"pooling_param {{ {parameters} }}")

    def lrn(self, bottom: str) -> str:
        return self.add("LRN", bottom, "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")

    def full(self, bottom: str, outputs: int) -> str:
        return self.add("InnerProduct", bottom, f"inner_product_param {{ num_output: {outputs} }}")

    def __str__(self) -> str:
        return "\n".join(self.lines)


def alexnet() -> _Text:
    net = _Text(227)
    x = net.pool(net.lrn(net.conv("data", 96, 11, "stride: 4")))
    x = net.pool(net.lrn(net.conv(x, 256, 5, "pad: 2 group: 2")))
    x = net.conv(net.conv(x, 384, 3, "pad: 1"), 384, 3, "pad: 1 group: 2")
    x = net.pool(net.conv(x, 256, 3, "pad: 1 group: 2"))
    net.full(net.relu(net.full(net.relu(net.full(x, 4096)), 4096)), 1000)
    return net


def vgg16() -> _Text:
    net, x = _Text(224), "data"
    for outputs, number in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(number):
            x = net.conv(x, outputs, 3, "pad: 1")
        x = net.pool(x, "pool: MAX kernel_size: 2 stride: 2")
    net.full(net.relu(net.full(net.relu(net.full(x, 4096)), 4096)), 1000)
    return net


def googlenet() -> _Text:
    net = _Text(224)
    x = net.lrn(net.pool(net.conv("data", 64, 7, "stride: 2 pad: 3")))
    x = net.pool(net.lrn(net.conv(net.conv(x, 64, 1), 192, 3, "pad: 1")))
    for name, (one, three, five, pool) in INCEPTIONS.items():
        first = net.conv(x, one, 1)
        second = net.conv(net.conv(x, three[0], 1), three[1], 3, "pad: 1")
        third = net.conv(net.conv(x, five[0], 1), five[1], 5, "pad: 2")
        fourth = net.conv(net.pool(x, "pool: MAX kernel_size: 3 stride: 1 pad: 1"), pool, 1)
        x = net.add("Concat", [first, second, third, fourth])
        x = net.pool(x) if name in ("3b", "4e") else x
    net.full(net.pool(x, "pool: AVE kernel_size: 7 stride: 1"), 1000)
    return net


def resnet50() -> _Text:
    net = _Text(224)
    x = net.pool(net.norm_conv("data", 64, 7, "stride: 2"))
    for middle, number in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for place in range(number):
            stride = "stride: 2" if place == 0 and middle > 64 else ""
            short = net.norm_conv(x, 4 * middle, 1, stride, relu=False) if place == 0 else x
            y = net.norm_conv(net.norm_conv(x, middle, 1, stride), middle, 3)
            y = net.norm_conv(y, 4 * middle, 1, relu=False)
            x = net.relu(net.add("Eltwise", [short, y]))
    net.full(net.pool(x, "pool: AVE kernel_size: 7 stride: 1"), 1000)
    return net


def mobilenet() -> _Text:
    net = _Text(224)
    x, inputs = net.norm_conv("data", 32, 3, "stride: 2"), 32
    for outputs, stride in SEPARABLE:
        x = net.norm_conv(x, inputs, 3, f"stride: {stride} group: {inputs}")
        x = net.norm_conv(x, outputs, 1)
        inputs = outputs
    net.full(net.pool(x, "pool: AVE kernel_size: 7 stride: 1"), 1000)
    return net


NETS = {"alexnet": alexnet, "googlenet": googlenet, "vgg16": vgg16, "resnet50": resnet50, "mobilenet": mobilenet}
"""Each by a name."""
