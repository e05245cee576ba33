"""The nets of ``chain.py --torch`` in PyTorch, as its users write them, in a process of PyTorch's interpreter.

    PYTHON benchmarks/torch_nets.py resnet50 1

It reads requests from standard input; see training_steps.py.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from training_steps import gradient, images, numbers, serve


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, pad: int = 0, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups), nn.ReLU(inplace=True)]


def norm_conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True) -> Any:
    parts = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-5),
    ]
    return nn.Sequential(*parts, *([nn.ReLU(inplace=True)] if relu else []))


def max_pool(kernel: int = 3, stride: int = 2, pad: int = 0) -> nn.Module:
    return nn.MaxPool2d(kernel, stride, pad, ceil_mode=True)


def lrn() -> nn.Module:
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1)


def alexnet() -> nn.Module:
    return nn.Sequential(
        *conv(3, 96, 11, 4), lrn(), max_pool(),
        *conv(96, 256, 5, 1, 2, 2), lrn(), max_pool(),
        *conv(256, 384, 3, 1, 1), *conv(384, 384, 3, 1, 1, 2), *conv(384, 256, 3, 1, 1, 2), max_pool(),
        nn.Flatten(), nn.Linear(9216, 4096), nn.ReLU(inplace=True), nn.Linear(4096, 4096), nn.ReLU(inplace=True),
        nn.Linear(4096, 1000),
    )  # fmt: skip


def vgg16() -> nn.Module:
    parts, inputs = [], 3
    for outputs, number in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(number):
            parts += conv(inputs, outputs, 3, 1, 1)
            inputs = outputs
        parts.append(nn.MaxPool2d(2, 2))
    full = [nn.Linear(25088, 4096), nn.ReLU(inplace=True), nn.Linear(4096, 4096), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.Flatten(), *full, nn.Linear(4096, 1000))


class Inception(nn.Module):
    def __init__(self, inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> None:
        super().__init__()
        self.one = nn.Sequential(*conv(inputs, one, 1))
        self.three = nn.Sequential(*conv(inputs, three[0], 1), *conv(three[0], three[1], 3, 1, 1))
        self.five = nn.Sequential(*conv(inputs, five[0], 1), *conv(five[0], five[1], 5, 1, 2))
        self.pool = nn.Sequential(max_pool(3, 1, 1), *conv(inputs, pool, 1))

    def forward(self, x: Any) -> Any:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


def googlenet() -> nn.Module:
    from training_nets import INCEPTIONS

    parts: list[nn.Module] = [*conv(3, 64, 7, 2, 3), max_pool(), lrn(), *conv(64, 64, 1), *conv(64, 192, 3, 1, 1)]
    parts += [lrn(), max_pool()]
    inputs = 192
    for name, plan in INCEPTIONS.items():
        parts.append(Inception(inputs, *plan))
        inputs = plan[0] + plan[1][1] + plan[2][1] + plan[3]
        parts += [max_pool()] if name in ("3b", "4e") else []
    return nn.Sequential(*parts, nn.AvgPool2d(7), nn.Flatten(), nn.Linear(inputs, 1000))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, middle: int, stride: int, project: bool) -> None:
        super().__init__()
        self.short = norm_conv(inputs, 4 * middle, 1, stride, relu=False) if project else nn.Identity()
        self.long = nn.Sequential(
            norm_conv(inputs, middle, 1, stride),
            norm_conv(middle, middle, 3),
            norm_conv(middle, 4 * middle, 1, relu=False),
        )

    def forward(self, x: Any) -> Any:
        return torch.relu_(self.long(x) + self.short(x))


def resnet50() -> nn.Module:
    parts, inputs = [norm_conv(3, 64, 7, 2), max_pool()], 64
    for middle, number in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for place in range(number):
            parts.append(Bottleneck(inputs, middle, 2 if place == 0 and middle > 64 else 1, place == 0))
            inputs = 4 * middle
    return nn.Sequential(*parts, nn.AvgPool2d(7), nn.Flatten(), nn.Linear(2048, 1000))


def mobilenet() -> nn.Module:
    from training_nets import SEPARABLE

    parts, inputs = [norm_conv(3, 32, 3, 2)], 32
    for outputs, stride in SEPARABLE:
        parts += [norm_conv(inputs, inputs, 3, stride, groups=inputs), norm_conv(inputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*parts, nn.AvgPool2d(7), nn.Flatten(), nn.Linear(1024, 1000))


def fill(net: nn.Module) -> None:
    """Put in the numbers of training_steps.py, and freeze the normalisation: its statistics and its affine part."""
    place = 0
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            own = ("running_mean", "running_var", "weight", "bias")
            module.eval().requires_grad_(False)
            roles: tuple[str, ...] = ("mean", "variance", "gamma", "beta")
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            roles = own = ("weight", "bias") if module.bias is not None else ("weight",)  # type: ignore[assignment]
        else:
            continue
        for name, role in zip(own, roles, strict=True):
            array = getattr(module, name)
            array.data.copy_(torch.from_numpy(numbers(place, role, tuple(array.shape))))
            place += 1


def main() -> None:
    name, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with torch.device("meta"):  # draws no numbers that are then replaced
        net = globals()[name]()
    net.to_empty(device="cpu")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.zero_()
    fill(net)
    x, g = (torch.from_numpy(values) for values in (images(227 if name == "alexnet" else 224), gradient(1000)))

    def step() -> Any:
        for param in net.parameters():
            param.grad = None
        y = net(x)
        y.backward(g)
        return y.detach().numpy(), (param.grad.numpy() for param in net.parameters() if param.grad is not None)

    serve({"version": torch.__version__}, step)


if __name__ == "__main__":
    main()
