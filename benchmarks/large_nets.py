"""Nets whose values are large beside their weights, as prototxts: ENet, MobileNet-YOLO and VDSR."""

from __future__ import annotations


class _Lines:
    """A prototxt under way."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        shape = " ".join(f"dim: {extent}" for extent in (1, channels, height, width))
        self.lines = [f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {shape} }} }} }}']

    def add(self, kind: str, bottoms: str | list[str], parameters: str = "", inplace: bool = False) -> str:
        """Add a layer; returns its top."""
        names = [bottoms] if isinstance(bottoms, str) else bottoms
        name = f"{kind.lower()}{len(self.lines)}"
        top = names[0] if inplace else name
        read = " ".join(f'bottom: "{bottom}"' for bottom in names)
        self.lines.append(f'layer {{ name: "{name}" type: "{kind}" {read} top: "{top}" {parameters} }}')
        return top

    def conv(self, bottom: str, outputs: int, kernel: str, kind: str = "Convolution") -> str:
        return self.add(kind, bottom, f"convolution_param {{ num_output: {outputs} {kernel} }}")

    def norm(self, bottom: str, activation: str = "PReLU", parameters: str = "") -> str:
        """BatchNorm, Scale and an activation, in place."""
        self.add("BatchNorm", bottom, inplace=True)
        self.add("Scale", bottom, "scale_param { bias_term: true }", inplace=True)
        return self.add(activation, bottom, parameters, inplace=True) if activation else bottom


def enet(height: int = 512, width: int = 1024) -> str:
    """ENet's encoder and a decoder of deconvolutions: bottlenecks, dilated and asymmetric kernels, sums.

    Source: A. Paszke et al., ENet, 2016, table 1.
    """
    net = _Lines(3, height, width)
    first = net.conv("data", 13, "kernel_size: 3 pad: 1 stride: 2")
    pool = net.add("Pooling", "data", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    x = net.norm(net.add("Concat", [first, pool]))
    x = _down(net, x, 64)
    for _ in range(4):
        x = _bottleneck(net, x, 64, "kernel_size: 3 pad: 1")
    x = _down(net, x, 128)
    for dilation in (1, 2, 0, 4, 1, 8, 0, 16):
        x = _bottleneck(net, x, 128, f"kernel_size: 3 pad: {dilation} dilation: {dilation}" if dilation else "")
    for outputs in (64, 16):
        x = net.norm(net.conv(x, outputs, "kernel_size: 4 stride: 2 pad: 1", "Deconvolution"), "ReLU")
    x = net.conv(x, 19, "kernel_size: 2 stride: 2", "Deconvolution")
    net.add("Softmax", x)
    return "\n".join(net.lines)


def _bottleneck(net: _Lines, x: str, channels: int, kernel: str) -> str:
    y = net.norm(net.conv(x, channels // 4, "kernel_size: 1 bias_term: false"))
    if kernel:
        y = net.conv(y, channels // 4, kernel)
    else:
        y = net.conv(y, channels // 4, "kernel_h: 5 kernel_w: 1 pad_h: 2 pad_w: 0 bias_term: false")
        y = net.conv(y, channels // 4, "kernel_h: 1 kernel_w: 5 pad_h: 0 pad_w: 2")
    y = net.norm(net.conv(net.norm(y), channels, "kernel_size: 1 bias_term: false"), "")
    return net.add("PReLU", net.add("Eltwise", [x, y]), inplace=True)


def _down(net: _Lines, x: str, channels: int) -> str:
    y = net.norm(net.conv(x, channels // 4, "kernel_size: 2 stride: 2 bias_term: false"))
    y = net.norm(net.conv(y, channels // 4, "kernel_size: 3 pad: 1"))
    y = net.norm(net.conv(y, channels, "kernel_size: 1 bias_term: false"), "")
    pool = net.add("Pooling", x, "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    shortcut = net.norm(net.conv(pool, channels, "kernel_size: 1 bias_term: false"), "")
    return net.add("PReLU", net.add("Eltwise", [shortcut, y]), inplace=True)


def mobilenet_yolo(size: int = 320) -> str:
    """MobileNet with two heads of a YOLO detector.

    Source: A. Howard et al., MobileNets, 2017, table 1; J. Redmon and A. Farhadi, YOLOv3, 2018.
    """
    net = _Lines(3, size, size)
    x = net.norm(net.conv("data", 32, "kernel_size: 3 pad: 1 stride: 2 bias_term: false"), "ReLU")
    inputs, middle = 32, x
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for outputs, stride in plan:
        if outputs == 1024 and inputs == 512:
            middle = x
        wise = f"kernel_size: 3 pad: 1 stride: {stride} group: {inputs} bias_term: false"
        x = net.norm(net.conv(x, inputs, wise), "ReLU")
        x = net.norm(net.conv(x, outputs, "kernel_size: 1 bias_term: false"), "ReLU")
        inputs = outputs
    net.conv(x, 75, "kernel_size: 1")
    up = net.conv(x, 256, "kernel_size: 2 stride: 2 group: 256 bias_term: false", "Deconvolution")
    both = net.conv(net.add("Concat", [up, middle]), 256, "kernel_size: 3 pad: 1")
    net.conv(net.add("ReLU", both, "relu_param { negative_slope: 0.1 }", inplace=True), 75, "kernel_size: 1")
    return "\n".join(net.lines)


def vdsr(size: int = 256) -> str:
    """VDSR: twenty convolutions of an image's own size, and a sum.

    Source: J. Kim et al., Accurate Image Super-Resolution Using Very Deep Convolutional Networks, 2016.
    """
    net = _Lines(1, size, size)
    x = "data"
    for _ in range(19):
        x = net.add("ReLU", net.conv(x, 64, "kernel_size: 3 pad: 1"), inplace=True)
    net.add("Eltwise", ["data", net.conv(x, 1, "kernel_size: 3 pad: 1")])
    return "\n".join(net.lines)


NETS = {"enet": enet, "mobilenet_yolo": mobilenet_yolo, "vdsr": vdsr}
"""Each by a name."""
