"""Whole nets, for test_equivalence.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.schema import Blob, Net, RawLayer, RawNet
from bridge.schema.message import Message
from tests.strategies.common import SEEDS

_AWKWARD = np.array(
    [
        0x80000000,  # -0.0
        0x00000001, 0x807FFFFF,  # denormal
        0x7F800000, 0xFF800000,  # infinite
        0x7FC00000, 0xFFC00123, 0x7F800001,  # NaN: quiet, with a payload, signalling
        0x7F7FFFFF, 0x00800000,  # largest and smallest normal
        0x3F800001,  # 1 + 2^-23, which no half holds
    ],
    np.uint32,
).view(np.float32)  # fmt: skip


@dataclass(frozen=True)
class WholeNet:
    """A net of several layers, and what it stores.

    Attributes:
        text: Its prototxt (V2).
        shapes: Layer -> the shape of each blob.
        seed: For the values.
        awkward: Which of the awkward values stand among them; none for nets that are to be run.
    """

    text: str
    shapes: dict[str, tuple[tuple[int, ...], ...]]
    seed: int
    awkward: tuple[int, ...] = ()

    @property
    def definition(self) -> Message:
        """The prototxt, parsed."""
        return prototxt.parse(self.text)

    def blobs(self) -> dict[str, list[np.ndarray]]:
        """Layer -> float32 arrays. Layers that share a parameter store the same values."""
        found: dict[str, list[np.ndarray]] = {}
        named: dict[str, np.ndarray] = {}
        rng = np.random.default_rng(self.seed)
        for layer in self.definition.messages("layer"):
            params = [param.text("name") for param in layer.messages("param")]
            for index, shape in enumerate(self.shapes.get(layer.text("name"), ())):
                array = self._values(rng, shape)
                name = params[index] if index < len(params) else ""
                found.setdefault(layer.text("name"), []).append(named.setdefault(name, array) if name else array)
        return found

    def _values(self, rng: Any, shape: tuple[int, ...]) -> np.ndarray:
        fan_in = max(1, int(np.prod(shape[1:])))
        values = (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
        for which in self.awkward:
            if values.size:
                values.reshape(-1)[rng.integers(values.size)] = _AWKWARD[which]
        return values

    def net(self) -> Net:
        """The net with its blobs."""
        types = {layer.text("name"): layer for layer in self.definition.messages("layer")}
        layers = (
            RawLayer(name, types[name].text("type"), types[name], tuple(map(Blob.of, arrays)))
            for name, arrays in self.blobs().items()
        )
        return assemble(RawNet("whole", tuple(layers), source="whole"), self.definition)


class _Drawn:
    """A net while it is drawn: its text, and the blob that the next layer reads."""

    def __init__(self, draw: Any, generation: str) -> None:
        self.draw, self.generation = draw, generation
        side = draw(st.integers(5, 9))
        self.shape: tuple[int, ...] = (draw(st.integers(1, 2)), draw(st.integers(1, 4)), side, draw(st.integers(5, 8)))
        self.blob, self.count = "data", 0
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
        dims = " ".join(f"dim: {extent}" for extent in self.shape)
        self.lines = [f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}']

    def layer(self, kind: str, body: str = "", *, bottoms: tuple[str, ...] = (), inplace: bool = False) -> str:
        """Add a layer on the current blob, or on ``bottoms``; returns its name."""
        self.count += 1
        name = f"{kind.lower()}{self.count}"
        read = bottoms or (self.blob,)
        top = read[0] if inplace else name
        wiring = " ".join(f'bottom: "{bottom}"' for bottom in read)
        self.lines.append(f'layer {{ name: "{name}" type: "{kind}" {wiring} top: "{top}" {body} }}')
        self.blob = top
        return name

    def convolution(
        self, bottom: str, outputs: int, body: str, kernel: tuple[int, int], group: int, params: str
    ) -> str:
        bias = self.draw(st.booleans())
        flags = f"num_output: {outputs} group: {group} bias_term: {str(bias).lower()} {body}"
        name = self.layer("Convolution", f"{params} convolution_param {{ {flags} }}", bottoms=(bottom,))
        weight = (outputs, self.shape[1] // group, *kernel)
        self.shapes[name] = (weight, (outputs,)) if bias else (weight,)
        return name


def _convolve(net: _Drawn) -> None:
    """One convolution, or two that share their weight, side by side, and then one blob again."""
    draw = net.draw
    group = draw(st.sampled_from([n for n in (1, 2, 3, 4) if net.shape[1] % n == 0]))
    outputs = group * draw(st.integers(1, 2))
    square = net.generation == "V0" or draw(st.booleans())
    height = draw(st.integers(1, 3))
    width = height if square else draw(st.integers(1, 3))
    pad = draw(st.integers(0, 1))
    kernel = f"kernel_size: {height}" if square else f"kernel_h: {height} kernel_w: {width}"
    space = tuple(n + 2 * pad - k + 1 for n, k in zip(net.shape[2:], (height, width), strict=True))
    shared = net.generation != "V0" and draw(st.booleans())
    params = f'param {{ name: "w{net.count}" }}' if shared else ""
    bottom = net.blob
    twins = [
        net.convolution(bottom, outputs, f"{kernel} pad: {pad}", (height, width), group, params)
        for _ in range(1 + shared)
    ]
    if shared and net.generation == "V2" and draw(st.booleans()):
        net.layer("Eltwise", "eltwise_param { operation: SUM coeff: 1 coeff: -0.5 }", bottoms=tuple(twins))
    elif shared:
        net.layer("Concat", bottoms=tuple(twins))
        outputs *= 2
    net.shape = (net.shape[0], outputs, *space)


def _pool(net: _Drawn) -> None:
    kind = net.draw(st.sampled_from(["MAX", "AVE"]))
    stride = net.draw(st.integers(1, 2))
    net.layer("Pooling", f"pooling_param {{ pool: {kind} kernel_size: 2 stride: {stride} }}")
    net.shape = (*net.shape[:2], *(-(-(n - 2) // stride) + 1 for n in net.shape[2:]))


def _activate(net: _Drawn) -> None:
    slope = net.draw(st.sampled_from(["", "relu_param { negative_slope: 0.25 }"])) if net.generation != "V0" else ""
    net.layer("ReLU", slope, inplace=net.draw(st.booleans()))


def _normalise(net: _Drawn) -> None:
    net.layer("LRN", "lrn_param { local_size: 3 alpha: 0.5 beta: 0.75 }")


def _drop(net: _Drawn) -> None:
    net.layer("Dropout", inplace=True)


def _standardise(net: _Drawn) -> None:
    """BatchNorm and Scale in place, as ResNets have them."""
    channels = (net.shape[1],)
    norm = net.layer("BatchNorm", inplace=True)
    net.shapes[norm] = (channels, channels, (1,))
    scale = net.layer("Scale", "scale_param { bias_term: true }", inplace=True)
    net.shapes[scale] = (channels, channels)


def _finish(net: _Drawn) -> None:
    outputs = net.draw(st.integers(1, 5))
    name = net.layer("InnerProduct", f"inner_product_param {{ num_output: {outputs} }}")
    net.shapes[name] = ((outputs, int(np.prod(net.shape[1:]))), (outputs,))
    if net.draw(st.booleans()):
        net.layer("Softmax")


@st.composite
def whole_nets(draw: Any, generation: str = "V2", awkward: bool = False, run: bool = False) -> WholeNet:
    """Nets with groups, rectangular kernels, in-place chains, shared parameters and branches.

    Args:
        draw: Hypothesis's.
        generation: The oldest generation of files that the net can be written in.
        awkward: Let values be -0.0, denormal, infinite, NaN.
        run: The net is to be run, so that variances have to be positive: no BatchNorm.
    """
    net = _Drawn(draw, generation)
    steps = [_convolve, _activate, _normalise, _drop, _pool]
    if generation == "V2" and not run:
        steps.append(_standardise)
    for step in draw(st.lists(st.sampled_from(steps), min_size=1, max_size=6)):
        if step not in (_convolve, _pool) or min(net.shape[2:]) >= 3:
            step(net)
    if draw(st.booleans()):
        _finish(net)
    odd = tuple(draw(st.lists(st.integers(0, len(_AWKWARD) - 1), max_size=4))) if awkward else ()
    return WholeNet("\n".join(net.lines) + "\n", net.shapes, draw(SEEDS), odd)
