"""Every Hypothesis strategy of the tests.

A layer type's strategy draws a :class:`LayerCase`: a layer as it stands in a prototxt,
and the shapes of its inputs. Blobs are made from the shapes that the layer itself asks
for. Register one with ``@layer_case("Type")``; a test demands it of every type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.layers import build_layer
from bridge.schema import Blob, Blobs, Net, Opaque, RawLayer, RawNet
from bridge.schema.message import Message, Symbol
from tests import encode

CASES: dict[str, Any] = {}
"""Layer type -> strategy of LayerCases."""


@dataclass(frozen=True)
class LayerCase:
    """A layer and what it is fed.

    Attributes:
        type: Caffe's type string.
        body: The layer's fields beside name, type, bottom and top, as prototxt text.
        shapes: The shape of each bottom.
        tops: How many tops.
        data: How to fill inputs: bottom index -> function of (rng, shape); else standard normal.
        blobs: How to fill blobs: role -> function of (rng, shape); else standard normal.
        seed: For inputs and blobs.
    """

    type: str
    body: str
    shapes: tuple[tuple[int, ...], ...]
    tops: int = 1
    data: dict[int, Callable[[Any, Any], Any]] = field(default_factory=dict)
    blobs: dict[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    seed: int = 0

    @property
    def prototxt(self) -> str:
        """The whole net: an Input for each bottom, then the layer."""
        lines = [
            f'layer {{ name: "in{i}" type: "Input" top: "in{i}" input_param {{ shape {{ '
            + " ".join(f"dim: {n}" for n in shape)
            + " } } }\n"
            for i, shape in enumerate(self.shapes)
        ]
        wiring = [f'bottom: "in{i}"' for i in range(len(self.shapes))] + [f'top: "out{i}"' for i in range(self.tops)]
        return "".join(lines) + f'layer {{ name: "l" type: "{self.type}" {" ".join(wiring)} {self.body} }}\n'

    def net(self) -> Net:
        """The net with its blobs."""
        definition = prototxt.parse(self.prototxt)
        layer = build_layer(definition.messages("layer")[-1])
        rng = np.random.default_rng(self.seed)
        wanted = {} if isinstance(layer, Opaque) else layer.blob_shapes(*self.shapes)
        blobs = tuple(Blob.of(self._fill(self.blobs.get(role), rng, shape)) for role, shape in wanted.items())
        raw = RawLayer("l", self.type, layer.definition, blobs)
        return assemble(RawNet("case", (raw,), reader="strategy", source="case"), definition)

    def inputs(self) -> dict[str, np.ndarray]:
        """float32 values for each input."""
        rng = np.random.default_rng(self.seed + 1)
        return {f"in{i}": self._fill(self.data.get(i), rng, shape) for i, shape in enumerate(self.shapes)}

    @staticmethod
    def _fill(fill: Callable[[Any, Any], Any] | None, rng: Any, shape: tuple[int, ...]) -> np.ndarray:
        values = fill(rng, shape) if fill else rng.standard_normal(shape)
        return np.asarray(values, np.float32).reshape(shape)


def layer_case(*types: str) -> Callable[[Any], Any]:
    """Register a ``@st.composite`` function that draws LayerCases for layer types."""

    def decorate(function: Any) -> Any:
        for name in types:
            CASES[name] = function(name)
        return function

    return decorate


def positive(rng: Any, shape: Any) -> Any:
    """Values between 0.1 and 2, for variances and the like."""
    return rng.uniform(0.1, 2, shape)


def images(
    min_side: int = 1, max_side: int = 9, channels: st.SearchStrategy[int] | None = None
) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes (N, C, H, W)."""
    side = st.integers(min_side, max_side)
    return st.tuples(st.integers(1, 3), st.integers(1, 6) if channels is None else channels, side, side)


def shapes(min_rank: int = 1, max_rank: int = 4, max_side: int = 5) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of any rank."""
    return st.lists(st.integers(1, max_side), min_size=min_rank, max_size=max_rank).map(tuple)


SEEDS = st.integers(0, 2**16)

# ---- convolution and its kin ---------------------------------------------------------------


def _flags(draw: Any, *names: str) -> str:
    """Each of these boolean fields, true or false or left out."""
    drawn = [(name, draw(st.sampled_from(["", "true", "false"]))) for name in names]
    return " ".join(f"{name}: {value}" for name, value in drawn if value)


def _fields(name: str, values: Any) -> str:
    return " ".join(f"{name}: {value}" for value in values)


@st.composite
def windows(draw: Any, space: tuple[int, ...]) -> str:
    """kernel, stride and pad, in any of their spellings, that fit spatial extents."""
    rank = len(space)
    spelling = draw(st.sampled_from(["one", "list", "sides"] if rank == 2 else ["one", "list"]))
    count = 1 if spelling == "one" else rank
    kernel = [draw(st.integers(1, min(4, *space))) for _ in range(count)] if space else [1]
    stride = [draw(st.integers(1, 3)) for _ in range(count)]
    pad = [draw(st.integers(0, 2)) for _ in range(count)]
    if spelling == "sides":
        drawn = zip(("kernel", "stride", "pad"), (kernel, stride, pad), strict=True)
        return " ".join(f"{name}_h: {h} {name}_w: {w}" for name, (h, w) in drawn)
    return " ".join(map(_fields, ("kernel_size", "stride", "pad"), (kernel, stride, pad)))


@layer_case("Convolution", "Deconvolution")
@st.composite
def convolutions(draw: Any, kind: str) -> LayerCase:
    group, per_in, per_out = (draw(st.integers(1, 3)) for _ in range(3))
    batch = tuple(draw(st.lists(st.integers(1, 2), max_size=2)))
    space = tuple(draw(st.lists(st.integers(6, 8), max_size=3)))
    shape = (*batch, group * per_in, *space)
    axis = draw(st.sampled_from([len(batch), len(batch) - len(shape)]))
    dilation = _fields("dilation", draw(st.sampled_from([[], [1], [2]] if max(space, default=0) else [[]])))
    window = draw(windows(tuple((n + 1) // 2 for n in space)))
    if kind == "Deconvolution":
        window = window.replace("pad: 2", "pad: 0").replace("pad_h: 2", "pad_h: 0").replace("pad_w: 2", "pad_w: 0")
    body = (
        f"convolution_param {{ num_output: {group * per_out} group: {group} {window} "
        f"{dilation} axis: {axis} {_flags(draw, 'bias_term', 'force_nd_im2col')} }}"
    )
    count = draw(st.integers(1, 2))
    return LayerCase(kind, body, (shape,) * count, tops=count, seed=draw(SEEDS))


@layer_case("ConvolutionDepthwise", "DepthwiseConvolution")
@st.composite
def depthwise_convolutions(draw: Any, kind: str) -> LayerCase:
    shape = draw(images(4, 9))
    body = f"convolution_param {{ num_output: {shape[1]} {draw(windows(shape[2:]))} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


@layer_case("InnerProduct")
@st.composite
def inner_products(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(1, 4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    flags = _flags(draw, "bias_term", "transpose")
    flags += " normalize: true" if "transpose: true" not in flags and draw(st.booleans()) else ""
    body = f"inner_product_param {{ num_output: {draw(st.integers(1, 5))} axis: {axis} {flags} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


_MASK: dict[str, Callable[[Any, Any], Any]] = {
    role: lambda rng, shape: rng.integers(0, 2, shape) for role in ("weight_mask", "bias_mask")
}


@layer_case("CConvolution", "DNSConvolution", "INQConvolution", "ConvolutionRistretto", "FQConvolution")
@st.composite
def convolution_twins(draw: Any, kind: str) -> LayerCase:
    group, per_in, per_out, kernel = (draw(st.integers(1, 3)) for _ in range(4))
    shape = (draw(st.integers(1, 2)), group * per_in, draw(st.integers(4, 6)), draw(st.integers(4, 6)))
    window = f"kernel_size: {kernel} stride: {draw(st.integers(1, 2))} pad: {draw(st.integers(0, 1))}"
    body = f"convolution_param {{ num_output: {group * per_out} group: {group} {window} {_flags(draw, 'bias_term')} }}"
    return LayerCase(kind, f"{body} {_quantised(draw, kind)}", (shape,), blobs=_twin_blobs(draw), seed=draw(SEEDS))


@layer_case("CInnerProduct", "DNSInnerProduct", "INQInnerProduct", "FcRistretto", "FQInnerProduct")
@st.composite
def inner_product_twins(draw: Any, kind: str) -> LayerCase:
    body = f"inner_product_param {{ num_output: {draw(st.integers(1, 4))} {_flags(draw, 'bias_term', 'transpose')} }}"
    blobs = _twin_blobs(draw)
    return LayerCase(kind, f"{body} {_quantised(draw, kind)}", (draw(shapes(2, 4)),), blobs=blobs, seed=draw(SEEDS))


def _quantised(draw: Any, kind: str) -> str:
    """Formats for Ristretto's layers, the output's so fine that a sum in another order does not matter."""
    if not kind.endswith("Ristretto"):
        return ""
    bits = draw(st.sampled_from([6, 8]))
    return (
        f"quantization_param {{ bw_layer_in: {bits} fl_layer_in: 4 bw_params: {bits} fl_params: {draw(st.integers(3, 5))} "
        f"bw_layer_out: 32 fl_layer_out: {draw(st.integers(10, 12))} }}"
    )


def _twin_blobs(draw: Any) -> dict[str, Any]:
    levels = draw(st.sampled_from([[8, 0, 0, 0], [9, 0, 0, 0], [16, 0.125, -8, 7]]))
    return {**_MASK, "levels": lambda rng, shape: np.array(levels)}


@layer_case("GRN")
@st.composite
def grns(draw: Any, kind: str) -> LayerCase:
    return LayerCase(
        kind, draw(st.sampled_from(["", "grn_param { bias: 0.5 }"])), (draw(images(1, 4)),), seed=draw(SEEDS)
    )


@layer_case("BilinearInterpolate")
@st.composite
def bilinear_interpolations(draw: Any, kind: str) -> LayerCase:
    size = draw(st.sampled_from(["dst_h: 7 dst_w: 4", "dst_h: 3", "scale_factor: 2", "scale_factor: 1.5", "dst_w: 9"]))
    body = f"bilinear_interpolate_param {{ {size} {_flags(draw, 'align_corners')} }}"
    return LayerCase(kind, body, (draw(images(2, 6)),), seed=draw(SEEDS))


@layer_case("Resample")
@st.composite
def resamplings(draw: Any, kind: str) -> LayerCase:
    n, c, h, w = draw(images(2, 6))
    how = draw(st.sampled_from(["NEAREST", "LINEAR", "CUBIC"]))
    factor = draw(st.sampled_from([1, 2, 3]))
    rows, columns = (
        (h * factor, w * factor) if how == "NEAREST" else (draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    )
    size = (n, c, rows, columns)
    second = draw(st.booleans())
    fields = "" if second else f"height: {rows} width: {columns}"
    body = f"resample_param {{ type: {how} {fields} {_flags(draw, 'antialias')} }}"
    return LayerCase(kind, body, ((n, c, h, w), size) if second else ((n, c, h, w),), seed=draw(SEEDS))


@layer_case("spatial_dropout.SpatialDropoutLayer")
@st.composite
def spatial_dropouts(draw: Any, kind: str) -> LayerCase:
    module, layer = kind.split(".")
    text = f"{{'phase': 'TEST', 'p': '{draw(st.sampled_from(['0.1', '0.01', '.5']))}'}}"
    body = f"""python_param {{ module: "{module}" layer: "{layer}" param_str: "{text}" }}"""
    return LayerCase("Python", body, (draw(shapes(1, 4)),), seed=draw(SEEDS))


@layer_case("Embed")
@st.composite
def embeds(draw: Any, kind: str) -> LayerCase:
    rows = draw(st.integers(1, 9))
    body = f"embed_param {{ num_output: {draw(st.integers(1, 4))} input_dim: {rows} {_flags(draw, 'bias_term')} }}"
    return LayerCase(kind, body, (draw(shapes(1, 3)),), data={0: numbers_below(rows)}, seed=draw(SEEDS))


def numbers_below(stop: int) -> Callable[[Any, Any], Any]:
    """Whole numbers from 0 on."""
    return lambda rng, shape: rng.integers(0, stop, shape)


# ---- pooling, normalisation ------------------------------------------------------------------


@layer_case("Pooling")
@st.composite
def poolings(draw: Any, kind: str) -> LayerCase:
    shape = draw(images(1, 9))
    pool = draw(st.sampled_from(["MAX", "AVE", "STOCHASTIC"]))
    data = {0: numbers_below(4)} if draw(st.booleans()) else {}  # equal values, of which the first is the maximum
    common = {"tops": draw(st.integers(1, 2)) if pool == "MAX" else 1, "data": data, "seed": draw(SEEDS)}
    if draw(st.integers(0, 4)) == 0:
        return LayerCase(kind, f"pooling_param {{ pool: {pool} global_pooling: true }}", (shape,), **common)
    kernel, stride = ([draw(st.integers(1, 4)) for _ in range(2)] for _ in range(2))
    pad = [0, 0] if pool == "STOCHASTIC" else [draw(st.integers(0, k - 1)) for k in kernel]
    assume(all(n + 2 * p - k > -s for n, k, s, p in zip(shape[2:], kernel, stride, pad, strict=True)))
    mode = draw(st.sampled_from(["CEIL", "FLOOR"]))
    assume(mode == "CEIL" or all(n + 2 * p >= k for n, k, p in zip(shape[2:], kernel, pad, strict=True)))
    if kernel[0] == kernel[1] and stride[0] == stride[1] and pad[0] == pad[1]:
        window = f"kernel_size: {kernel[0]} stride: {stride[0]} pad: {pad[0]}"
    else:
        drawn = zip(("kernel", "stride", "pad"), (kernel, stride, pad), strict=True)
        window = " ".join(f"{name}_h: {h} {name}_w: {w}" for name, (h, w) in drawn)
    said = draw(st.sampled_from([f"round_mode: {mode}", f"ceil_mode: {str(mode == 'CEIL').lower()}"]))
    return LayerCase(kind, f"pooling_param {{ pool: {pool} {window} {said} }}", (shape,), **common)


@layer_case("LRN")
@st.composite
def lrns(draw: Any, kind: str) -> LayerCase:
    region = draw(st.sampled_from(["ACROSS_CHANNELS", "WITHIN_CHANNEL"]))
    drawn = {"alpha": draw(st.floats(0.01, 2)), "beta": draw(st.floats(0.1, 1)), "k": draw(st.floats(0.5, 3))}
    numbers = " ".join(f"{name}: {value:.4f}" for name, value in drawn.items())
    body = f"lrn_param {{ local_size: {draw(st.sampled_from([1, 3, 5, 7]))} norm_region: {region} {numbers} }}"
    return LayerCase(kind, body, (draw(images(1, 7)),), seed=draw(SEEDS))


@layer_case("BatchNorm")
@st.composite
def batch_norms(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(2, 5, 4))
    factor = draw(st.sampled_from([0.0, 1.0, 999.98]))
    blobs = {"variance": positive, "scale_factor": lambda rng, shape: np.full(shape, factor)}
    by_batch = shape[0] > 1 and draw(st.booleans())
    flags = "use_global_stats: false" if by_batch else _flags(draw, "scale_bias")
    # without a large eps the error of a variance near 0 would be all that is seen
    eps = draw(st.sampled_from([1e-3, 0.1] if by_batch else [1e-7, 1e-5, 1e-3, 0.1]))
    return LayerCase(kind, f"batch_norm_param {{ {flags} eps: {eps} }}", (shape,), blobs=blobs, seed=draw(SEEDS))


@layer_case("MVN")
@st.composite
def mvns(draw: Any, kind: str) -> LayerCase:
    flags = _flags(draw, "normalize_variance", "across_channels")
    body = f"mvn_param {{ {flags} eps: {draw(st.sampled_from([1e-5, 1e-2, 1]))} }}"
    return LayerCase(kind, body, (draw(shapes(1, 4)),), seed=draw(SEEDS))


@layer_case("Scale", "Bias")
@st.composite
def scales(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(1, 4))
    axis = draw(st.integers(0, len(shape) - 1))
    count = draw(st.integers(0, len(shape) - axis))
    field, flags = ("scale_param", _flags(draw, "bias_term")) if kind == "Scale" else ("bias_param", "")
    axis_text = f"axis: {draw(st.sampled_from([axis, axis - len(shape)]))}"
    if draw(st.booleans()):
        own = shape[axis : axis + count]
        return LayerCase(kind, f"{field} {{ {axis_text} {flags} }}", (shape, own), seed=draw(SEEDS))
    body = f"{field} {{ {axis_text} num_axes: {draw(st.sampled_from([count, -1]))} {flags} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


# ---- value by value --------------------------------------------------------------------------


def _wide(rng: Any, shape: Any) -> Any:
    """Values far to both sides of 0, whole ones among them."""
    return np.where(rng.random(shape) < 0.2, rng.integers(-7, 8, shape), rng.standard_normal(shape) * 5)


_VALUES: dict[str, tuple[str, dict[str, list[float]]]] = {
    "AbsVal": ("", {}),
    "BNLL": ("", {}),
    "ELU": ("elu_param", {"alpha": [0, 0.5, 1, 2, -0.3]}),
    "HardSigmoid": ("hardsigmoid_param", {"alpha": [0.1, 1 / 6], "beta": [0.5, 0.4]}),
    "HardSwish": ("", {}),
    "Mish": ("", {}),
    "ReLU": ("relu_param", {"negative_slope": [0, 1, 0.1, 0.5, 2, -0.5]}),
    "ReLU6": ("relu6_param", {"negative_slope": [0, 0.25]}),
    "Sigmoid": ("", {}),
    "Swish": ("swish_param", {"beta": [0, 1, 0.5, 2, -1]}),
    "TanH": ("", {}),
    "Threshold": ("threshold_param", {"threshold": [0, 1, 0.25, -2]}),
    "Exp": ("exp_param", {"base": [-1, 2, 10, 0.5, 1], "scale": [0, 1, 0.1, -0.2], "shift": [0, 1, -0.5]}),
}


@layer_case(*_VALUES)
@st.composite
def neurons(draw: Any, kind: str) -> LayerCase:
    field, options = _VALUES[kind]
    given = [f"{name}: {draw(st.sampled_from(values)):g}" for name, values in options.items() if draw(st.booleans())]
    if kind == "HardSigmoid":
        field = draw(st.sampled_from([field, "hard_sigmoid_param"]))
    body = f"{field} {{ {' '.join(given)} }}" if field else ""
    return LayerCase(kind, body, (draw(shapes()),), data={0: _wide}, seed=draw(SEEDS))


@layer_case("Clip")
@st.composite
def clips(draw: Any, kind: str) -> LayerCase:
    low, high = (draw(st.floats(-9, 9)) for _ in range(2))
    body = f"clip_param {{ min: {low:.3f} max: {high:.3f} }}"
    return LayerCase(kind, body, (draw(shapes()),), data={0: _wide}, seed=draw(SEEDS))


@layer_case("Log")
@st.composite
def logs(draw: Any, kind: str) -> LayerCase:
    base, scale, shift = (draw(st.sampled_from(values)) for values in ([-1, 2, 10, 0.5], [1, 2, 0.1], [0, 1, 0.5]))
    body = f"log_param {{ base: {base} scale: {scale} shift: {shift} }}"
    return LayerCase(kind, body, (draw(shapes()),), data={0: positive}, seed=draw(SEEDS))


@layer_case("Power")
@st.composite
def powers(draw: Any, kind: str) -> LayerCase:
    power = draw(st.sampled_from([0, 1, 2, 3, 0.5, -1, -0.5]))
    scale, shift = draw(st.sampled_from([0, 1, 2, 0.5])), draw(st.sampled_from([0.5, 1, 2]))
    body = f"power_param {{ power: {power} scale: {scale} shift: {shift} }}"
    data = {0: positive if power not in (0, 1, 2, 3) or draw(st.booleans()) else _wide}
    return LayerCase(kind, body, (draw(shapes()),), data=data, seed=draw(SEEDS))


@layer_case("PReLU")
@st.composite
def prelus(draw: Any, kind: str) -> LayerCase:
    body = f"prelu_param {{ {_flags(draw, 'channel_shared')} }}"
    return LayerCase(kind, body, (draw(shapes(2)),), data={0: _wide}, seed=draw(SEEDS))


@layer_case("Dropout")
@st.composite
def dropouts(draw: Any, kind: str) -> LayerCase:
    body = f"dropout_param {{ dropout_ratio: 0.7 {_flags(draw, 'scale_train')} }}"
    return LayerCase(kind, body, (draw(shapes()),), seed=draw(SEEDS))


@layer_case("Softmax")
@st.composite
def softmaxes(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(1, 4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return LayerCase(kind, f"softmax_param {{ axis: {axis} }}", (shape,), data={0: _wide}, seed=draw(SEEDS))


@layer_case("Eltwise")
@st.composite
def eltwises(draw: Any, kind: str) -> LayerCase:
    shape, count = draw(shapes()), draw(st.integers(2, 4))
    operation = draw(st.sampled_from(["PROD", "SUM", "MAX"]))
    coeffs = [draw(st.sampled_from([-1, 0.5, 1, 2])) for _ in range(count)] if draw(st.booleans()) else []
    extra = _fields("coeff", coeffs) if operation != "PROD" else ""
    body = f"eltwise_param {{ operation: {operation} {extra} {_flags(draw, 'stable_prod_grad')} }}"
    return LayerCase(kind, body, (shape,) * count, seed=draw(SEEDS))


# ---- wiring, choosing, summing -----------------------------------------------------------------


@layer_case("Concat")
@st.composite
def concats(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(2, 4))
    axis = draw(st.integers(0, len(shape) - 1))
    many = tuple((*shape[:axis], draw(st.integers(1, 4)), *shape[axis + 1 :]) for _ in range(draw(st.integers(1, 3))))
    spelling = draw(st.sampled_from([f"axis: {axis}", f"axis: {axis - len(shape)}", f"concat_dim: {axis}"]))
    return LayerCase(kind, f"concat_param {{ {spelling} }}", many, seed=draw(SEEDS))


@layer_case("Split")
@st.composite
def splits(draw: Any, kind: str) -> LayerCase:
    return LayerCase(kind, "", (draw(shapes()),), tops=draw(st.integers(1, 3)), seed=draw(SEEDS))


@layer_case("Silence")
@st.composite
def silences(draw: Any, kind: str) -> LayerCase:
    return LayerCase(kind, "", tuple(draw(st.lists(shapes(), min_size=1, max_size=3))), tops=0, seed=draw(SEEDS))


@layer_case("Input")
@st.composite
def inputs(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes())
    return LayerCase(kind, f"input_param {{ shape {{ {_fields('dim', shape)} }} }}", ())


@layer_case("Parameter")
@st.composite
def parameters(draw: Any, kind: str) -> LayerCase:
    return LayerCase(kind, f"parameter_param {{ shape {{ {_fields('dim', draw(shapes(0)))} }} }}", (), seed=draw(SEEDS))


@layer_case("ArgMax")
@st.composite
def argmaxes(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes())
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    extent = math.prod(shape[1:]) if axis is None else shape[axis]
    fields = [f"axis: {axis}"] if axis is not None else []
    fields += [f"top_k: {draw(st.integers(1, min(extent, 5)))}"] if draw(st.booleans()) else []
    body = f"argmax_param {{ {' '.join(fields)} {_flags(draw, 'out_max_val')} }}"
    data = {0: numbers_below(4)} if draw(st.booleans()) else {}  # equal values, of which the last is the first
    return LayerCase(kind, body, (shape,), data=data, seed=draw(SEEDS))


@layer_case("Reduction")
@st.composite
def reductions(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes())
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    operation, coeff = draw(st.sampled_from(["SUM", "ASUM", "SUMSQ", "MEAN", 4])), draw(st.sampled_from([1, 0.5, -2]))
    body = f"reduction_param {{ operation: {operation} axis: {axis} coeff: {coeff} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


@layer_case("Tile")
@st.composite
def tiles(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes())
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    body = f"tile_param {{ axis: {axis} tiles: {draw(st.integers(1, 3))} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


@layer_case("BatchReindex")
@st.composite
def batch_reindexes(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes())
    chosen = (draw(st.integers(1, 6)),)
    return LayerCase(kind, "", (shape, chosen), data={1: numbers_below(shape[0])}, seed=draw(SEEDS))


# -- weights ---------------------------------------------------------------------------------


@st.composite
def grouped_weights(
    draw: Any, dtypes: tuple[str, ...] = ("f2", "f4", "f8"), space: tuple[int, int] = (0, 3)
) -> tuple[np.ndarray, int]:
    """A weight of any bits (signs of zero, payloads of NaN) and its number of groups.

    Args:
        draw: Hypothesis's.
        dtypes: Which types it may have.
        space: How many spatial axes, at least and at most.
    """
    group, rows, columns = (draw(st.integers(1, 4)) for _ in range(3))
    shape = (group * rows, columns, *draw(st.lists(st.integers(1, 3), min_size=space[0], max_size=space[1])))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    raw = draw(st.binary(min_size=dtype.itemsize * int(np.prod(shape)), max_size=dtype.itemsize * int(np.prod(shape))))
    weight = np.frombuffer(raw, dtype).reshape(shape).copy()
    special = draw(st.lists(st.sampled_from([0.0, -0.0, np.nan, np.inf]), max_size=4))
    weight.reshape(-1)[: len(special)] = special[: weight.size]
    return weight, group


@st.composite
def grouped_convolutions(draw: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """An input, a weight, and the groups; of small whole numbers, so that sums are exact."""
    group, rows, columns, batch = (draw(st.integers(1, 3)) for _ in range(4))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    space = tuple(k + draw(st.integers(0, 3)) for k in kernel)
    rng = np.random.default_rng(draw(SEEDS))
    x = rng.integers(-9, 10, (batch, group * columns, *space)).astype(np.float64)
    return x, rng.integers(-9, 10, (group * rows, columns, *kernel)).astype(np.float64), group


# -- files -----------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
"""Names of layers and blobs: slashes, colons, spaces, quotes and any script among them."""
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda x: float(str(np.float32(x))))
"""Numbers as a prototxt has them, each the shortest that is its float32."""
_DISTINCT = {"t", "f", "true", "false", "True", "False", "inf", "infinity", "nan"}


def messages(depth: int = 3) -> Any:
    """Any message that text format can say."""
    words = st.from_regex(r"[A-Za-z_]\w*", fullmatch=True).map(lambda word: word[:20])
    symbols = words.filter(lambda word: word.lower() not in _DISTINCT).map(Symbol)
    scalars = st.booleans() | st.integers(-(2**63), 2**64 - 1) | FLOATS | NAMES | symbols
    values = scalars if depth == 0 else scalars | messages(depth - 1)
    named = st.dictionaries(words, st.lists(values, min_size=1, max_size=3), max_size=4)
    numbers = st.integers(1, 1 << 29).map(str)
    numbered = st.dictionaries(numbers, st.lists(st.integers(0, 2**63) | st.binary(max_size=9), min_size=1), max_size=2)
    return st.builds(lambda names, numbers: _message({**names, **numbers}), named, numbered)


def _message(fields: dict[str, list[Any]]) -> Message:
    message = Message()
    for name, values in fields.items():
        message.set(name, *values)
    return message


@dataclass(frozen=True)
class StoredBlob:
    """An array and how a caffemodel holds it: see :mod:`tests.encode`."""

    array: np.ndarray
    values: str
    shape: str
    diff: bool

    @property
    def data(self) -> bytes:
        return encode.blob(self.array, self.values, self.shape, self.diff)

    @property
    def expected(self) -> np.ndarray:
        array = encode.stored(self.array, self.values)
        return array.reshape(()) if self.shape == "absent" and array.size == 1 else array


@st.composite
def stored_blobs(draw: Any) -> StoredBlob:
    style = draw(st.sampled_from(encode.SHAPES))
    axes = {"legacy": (4, 4), "absent": (1, 1)}.get(style, (0, 5))
    shape = draw(st.lists(st.integers(0 if style != "absent" else 1, 4), min_size=axes[0], max_size=axes[1]))
    values = np.random.default_rng(draw(SEEDS)).standard_normal(shape)
    return StoredBlob(values, draw(st.sampled_from(encode.VALUES)), style, draw(st.booleans()))


def _only(**fields: Any) -> Any:
    """A parameter message with some of the fields."""
    return st.fixed_dictionaries({}, optional=fields).map(lambda drawn: Message("", **drawn))


_SIZES = st.integers(0, 500)
_FILLERS = _only(type=st.sampled_from(["xavier", "constant"]), value=FLOATS, std=FLOATS)
_PARAMS: dict[str, tuple[str, Any]] = {
    "Convolution": (
        "convolution_param",
        _only(num_output=_SIZES, bias_term=st.booleans(), pad=_SIZES, kernel_size=_SIZES, stride=_SIZES, group=_SIZES,
              weight_filler=_FILLERS, bias_filler=_FILLERS),
    ),
    "InnerProduct": ("inner_product_param", _only(num_output=_SIZES, bias_term=st.booleans(), weight_filler=_FILLERS)),
    "Pooling": (
        "pooling_param",
        _only(pool=st.sampled_from(["MAX", "AVE", "STOCHASTIC"]).map(Symbol), kernel_size=_SIZES, pad=_SIZES),
    ),
    "LRN": ("lrn_param", _only(local_size=_SIZES, alpha=FLOATS, beta=FLOATS, k=FLOATS)),
    "Dropout": ("dropout_param", _only(dropout_ratio=FLOATS)),
    "Concat": ("concat_param", _only(concat_dim=_SIZES)),
    "ReLU": ("", st.just(Message())),
    "Softmax": ("", st.just(Message())),
}  # fmt: skip


@st.composite
def definitions(draw: Any) -> Message:
    """A layer's definition that every generation of Caffe could say."""
    kind = draw(st.sampled_from(sorted(_PARAMS)))
    layer = Message("", name=draw(NAMES), type=kind)
    layer.set("bottom", *draw(st.lists(NAMES, max_size=2)))
    layer.set("top", *draw(st.lists(NAMES, max_size=2)))
    rates = draw(st.lists(st.tuples(FLOATS, FLOATS), max_size=2))
    layer.set("param", *(Message("", lr_mult=lr, decay_mult=decay) for lr, decay in rates))
    name, params = _PARAMS[kind]
    message = draw(params)
    if len(message):
        layer.set(name, message)
    return layer


StoredNet = list[tuple[Message, list[StoredBlob]]]


def stored_nets() -> Any:
    """Layers with blobs, in any encoding."""
    return st.lists(st.tuples(definitions(), st.lists(stored_blobs(), max_size=2)), max_size=4)


@st.composite
def wire_data(draw: Any) -> bytes:
    """Bytes that are almost a caffemodel: fields of any number, type and length, nested, cut off."""

    def fields(depth: int) -> bytes:
        parts = []
        for _ in range(draw(st.integers(0, 4))):
            number = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 50, 100, 106, 143, 1 << 28]))
            wire = draw(st.sampled_from([2, 2, 2, 2, 0, 1, 3, 4, 5, 6, 7]))
            body = draw(st.binary(max_size=12))
            if wire == 2:
                body = fields(depth - 1) if depth and draw(st.booleans()) else body
                lie = draw(st.sampled_from([0, 0, 0, 0, 1, -1, 1 << 31, 1 << 63]))
                body = encode.varint(max(len(body) + lie, 0)) + body
            parts.append(encode.tag(number, wire) + body)
        return b"".join(parts)

    data = encode.chunk(1, b"net") + fields(4)
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


# -- shapes, pieces, sequences ---------------------------------------------------------------


@layer_case("Flatten")
@st.composite
def flattens(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(1, 5))
    first, last = sorted(draw(st.integers(0, len(shape) - 1)) for _ in range(2))
    axis, end = (draw(st.sampled_from([place, place - len(shape)])) for place in (first, last))
    return LayerCase(kind, f"flatten_param {{ axis: {axis} end_axis: {end} }}", (shape,), seed=draw(SEEDS))


@layer_case("Reshape")
@st.composite
def reshapes(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(1, 4))
    start, stop = sorted(draw(st.integers(0, len(shape))) for _ in range(2))
    dims, left = [], int(np.prod(shape[start:stop]))
    for _ in range(draw(st.integers(0, 3))):
        dims.append(draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0])))
        left //= dims[-1]
    if left > 1 or not dims:
        dims.append(left)
    kept = [i for i, n in enumerate(dims) if start + i < len(shape) and shape[start + i] == n]
    for place in draw(st.lists(st.sampled_from(kept), unique=True)) if kept else []:
        dims[place] = 0
    if draw(st.booleans()):
        dims[draw(st.integers(0, len(dims) - 1))] = -1
    axis = draw(st.sampled_from([start, start - len(shape) - 1]))
    count = -1 if stop == len(shape) and draw(st.booleans()) else stop - start
    dim = " ".join(f"dim: {n}" for n in dims)
    body = f"reshape_param {{ shape {{ {dim} }} axis: {axis} num_axes: {count} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


@layer_case("Slice")
@st.composite
def slices(draw: Any, kind: str) -> LayerCase:
    shape, axis, tops = list(draw(shapes(1, 4))), 0, draw(st.integers(1, 4))
    axis = draw(st.integers(0, len(shape) - 1))
    name = draw(st.sampled_from(["axis", "slice_dim"]))
    if tops > 1 and draw(st.booleans()):
        points = sorted(draw(st.lists(st.integers(1, 8), min_size=tops - 1, max_size=tops - 1, unique=True)))
        shape[axis] = points[-1] + draw(st.integers(1, 3))
    else:
        points, shape[axis] = [], tops * draw(st.integers(1, 3))
    place = axis - len(shape) if name == "axis" and draw(st.booleans()) else axis
    body = f"slice_param {{ {name}: {place} {' '.join(f'slice_point: {n}' for n in points)} }}"
    return LayerCase(kind, body, (tuple(shape),), tops=tops, seed=draw(SEEDS))


@layer_case("Crop")
@st.composite
def crops(draw: Any, kind: str) -> LayerCase:
    size = draw(shapes(2, 4))
    axis = draw(st.integers(0, len(size) - 1))
    count = draw(st.sampled_from([0, 1, len(size) - axis]))
    offsets = [draw(st.integers(0, 3)) for _ in range(count)]
    each = offsets * (len(size) - axis) if count == 1 else offsets or [0] * (len(size) - axis)
    source = [*size[:axis], *(n + a + draw(st.integers(0, 2)) for n, a in zip(size[axis:], each, strict=True))]
    other = (*(draw(st.integers(1, 3)) for _ in range(axis)), *size[axis:])
    place = draw(st.sampled_from([axis, axis - len(size)]))
    body = f"crop_param {{ axis: {place} {' '.join(f'offset: {n}' for n in offsets)} }}"
    return LayerCase(kind, body, (tuple(source), other), seed=draw(SEEDS))


@layer_case("SPP")
@st.composite
def pyramids(draw: Any, kind: str) -> LayerCase:
    height = draw(st.integers(1, 4))
    bins = 2 ** (height - 1)
    side = st.integers(bins, 13).filter(lambda n: _fits_bins(n, height))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(side), draw(side))
    body = f"spp_param {{ pyramid_height: {height} pool: {draw(st.sampled_from(['MAX', 'AVE']))} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


def _fits_bins(side: int, height: int) -> bool:
    """Whether each level's pad is smaller than its kernel, as Caffe demands."""
    kernels = [(2**level, -(-side // 2**level)) for level in range(height)]
    return all((kernel * bins - side + 1) // 2 < kernel for bins, kernel in kernels)


@layer_case("Im2col")
@st.composite
def im2cols(draw: Any, kind: str) -> LayerCase:
    axis, rank = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [draw(st.integers(1, 2)) for _ in range(rank)]
    space = [d * (k - 1) + 1 + draw(st.integers(0, 3)) for k, d in zip(kernel, dilation, strict=True)]
    shape = (*(draw(st.integers(1, 2)) for _ in range(axis)), draw(st.integers(1, 3)), *space)
    fields = {"kernel_size": kernel, "dilation": dilation, "stride": [draw(st.integers(1, 3)) for _ in range(rank)]}
    fields["pad"] = [draw(st.integers(0, 2)) for _ in range(rank)]
    body = " ".join(f"{name}: {value}" for name, values in fields.items() for value in values)
    return LayerCase(kind, f"convolution_param {{ axis: {axis} {body} }}", (shape,), seed=draw(SEEDS))


@layer_case("Filter")
@st.composite
def filters(draw: Any, kind: str) -> LayerCase:
    many = draw(st.lists(shapes(1, 3), min_size=1, max_size=2))
    samples, rank = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    picked = tuple((samples, *shape[1:]) for shape in many)
    selector = (samples, *[1] * (rank - 1))
    data = {len(many): lambda rng, shape: rng.choice([0, 0, 1, -2, 0.25], shape)}
    return LayerCase(kind, "", (*picked, selector), tops=len(many), data=data, seed=draw(SEEDS))


@layer_case("LSTM", "RNN")
@st.composite
def recurrents(draw: Any, kind: str) -> LayerCase:
    steps, samples, size = (draw(st.integers(1, 4)) for _ in range(3))
    static, exposed = draw(st.booleans()), draw(st.booleans())
    states = {"LSTM": 2, "RNN": 1}[kind] * exposed
    x = (steps, samples, *draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    more = [(samples, *draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))] if static else []
    cont = {1: lambda rng, shape: rng.choice([0, 1, 1, 0.5], shape)}
    bottoms = (x, (steps, samples), *more, *[(1, samples, size)] * states)
    body = f"recurrent_param {{ num_output: {size} expose_hidden: {str(exposed).lower()} }}"
    return LayerCase(kind, body, bottoms, tops=1 + states, data=cont, seed=draw(SEEDS))


@layer_case("ContinuationIndicator")
@st.composite
def indicators(draw: Any, kind: str) -> LayerCase:
    steps, samples = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return LayerCase(kind, f"continuation_indicator_param {{ time_step: {steps} batch_size: {samples} }}", ())


@layer_case("Reverse")
@st.composite
def reverses(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes())
    body = f"reverse_param {{ axis: {draw(st.integers(0, len(shape) - 1))} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


@layer_case("DummyData")
@st.composite
def dummies(draw: Any, kind: str) -> LayerCase:
    """Constants only; random fillers are another value in every pass."""
    tops = draw(st.integers(1, 3))
    many = [draw(shapes(4, 4)) for _ in range(draw(st.sampled_from([1, tops])))]
    if draw(st.booleans()):
        dims = [" ".join(f"dim: {n}" for n in shape) for shape in many]
        body = " ".join(f"shape {{ {dim} }}" for dim in dims)
    else:
        sides = zip(("num", "channels", "height", "width"), zip(*many, strict=True), strict=True)
        body = " ".join(f"{side}: {n}" for side, extents in sides for n in extents)
    fillers = [f"value: {draw(st.sampled_from([0, 1, -0.25]))}" for _ in range(draw(st.sampled_from([0, 1, tops])))]
    body += " ".join(f" data_filler {{ type: 'constant' {filler} }}" for filler in fillers)
    return LayerCase(kind, f"dummy_data_param {{ {body} }}", (), tops=tops)


@layer_case("LSTMUnit")
@st.composite
def lstm_units(draw: Any, kind: str) -> LayerCase:
    samples, size = (draw(st.integers(1, 4)) for _ in range(2))
    cont = {2: lambda rng, shape: rng.choice([0, 1, 0.5], shape)}
    bottoms = ((1, samples, size), (1, samples, 4 * size), (1, samples))
    return LayerCase(kind, "", bottoms, tops=2, data=cont, seed=draw(SEEDS))


# ---- layers of forks -----------------------------------------------------------------------


@layer_case("Permute")
@st.composite
def permutes(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(2, 5))
    order = draw(st.permutations(range(len(shape))))[: draw(st.integers(0, len(shape)))]
    return LayerCase(
        kind, "permute_param { " + " ".join(f"order: {n}" for n in order) + " }", (shape,), seed=draw(SEEDS)
    )


@layer_case("Normalize")
@st.composite
def normalizes(draw: Any, kind: str) -> LayerCase:
    if draw(st.integers(0, 4)) == 0:
        return LayerCase(kind, "", (draw(images()),), seed=draw(SEEDS))
    flags = " ".join(f"{name}: {str(draw(st.booleans())).lower()}" for name in ("across_spatial", "channel_shared"))
    body = f"norm_param {{ {flags} eps: {draw(st.sampled_from(['1e-10', '0.01']))} }}"
    return LayerCase(kind, body, (draw(st.one_of(images(), shapes(2, 3))),), seed=draw(SEEDS))


@layer_case("L2Normalization", "L2Normalize", "L2Norm")
@st.composite
def l2_normalizations(draw: Any, kind: str) -> LayerCase:
    return LayerCase(kind, "", (draw(shapes(2, 4)),), seed=draw(SEEDS))


@layer_case("BN")
@st.composite
def bns(draw: Any, kind: str) -> LayerCase:
    body = draw(
        st.sampled_from(
            [
                "",
                "bn_param { eps: 0.001 frozen: true slope_filler { type: 'constant' value: 1 } }",
                "bn_param { var_eps: 0.001 moving_average: true }",
                "bn_param { var_eps: 0.001 decay: 0.1 }",
                "bn_param { bn_mode: INFERENCE }",
                "bn_param { bn_mode: LEARN }",
            ]
        )
    )
    shape = draw(st.tuples(st.integers(2, 3), st.integers(1, 5), st.integers(2, 6), st.integers(2, 6)))
    return LayerCase(kind, body, (shape,), blobs={"variance": positive}, seed=draw(SEEDS))


@layer_case("Upsample")
@st.composite
def upsamples(draw: Any, kind: str) -> LayerCase:
    shape, (a, b) = draw(images(1, 4)), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    if draw(st.booleans()):
        return LayerCase(kind, f"upsample_param {{ scale_h: {a} scale_w: {b} }}", (shape,), seed=draw(SEEDS))
    height, width = shape[2] * a, shape[3] * b
    options = [f"scale_h: {a} scale_w: {b}", f"upsample_h: {height} upsample_w: {width}"]
    if a == b == 2 and shape[2] > 1:
        height -= 1
        options = ["scale: 2 pad_out_h: true"]
    places = {1: lambda rng, shape: rng.integers(0, height * width, shape)}
    body = f"upsample_param {{ {draw(st.sampled_from(options))} }}"
    return LayerCase(kind, body, (shape, shape), data=places, seed=draw(SEEDS))


@layer_case("Interp")
@st.composite
def interps(draw: Any, kind: str) -> LayerCase:
    shape = draw(images(3, 9))
    size, zoom, shrink = (
        f"height: {draw(st.integers(1, 12))} width: {draw(st.integers(1, 12))}",
        f"zoom_factor: {draw(st.integers(1, 3))}",
        f"shrink_factor: {draw(st.integers(1, 3))}",
    )
    how = draw(st.sampled_from([size, zoom, shrink, f"{zoom} {shrink}", f"{size} {zoom}", f"{size} {zoom} {shrink}"]))
    body = f"interp_param {{ {how} pad_beg: {draw(st.integers(-1, 0))} pad_end: {draw(st.integers(-1, 0))} }}"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


@layer_case("ShuffleChannel")
@st.composite
def shuffle_channels(draw: Any, kind: str) -> LayerCase:
    group, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = draw(images(1, 4, st.just(group * per_group)))
    return LayerCase(kind, f"shuffle_channel_param {{ group: {group} }}", (shape,), seed=draw(SEEDS))


@layer_case("Axpy")
@st.composite
def axpys(draw: Any, kind: str) -> LayerCase:
    shape = draw(images())
    a = draw(st.sampled_from([shape[:2], (*shape[:2], 1, 1)]))
    return LayerCase(kind, "", (a, shape, shape), seed=draw(SEEDS))


@layer_case("PixelShuffle")
@st.composite
def pixel_shuffles(draw: Any, kind: str) -> LayerCase:
    r = draw(st.integers(1, 3))
    shape = draw(images(1, 4, st.integers(1, 3).map(lambda c: c * r * r)))
    return LayerCase(kind, f"pixelshuffle_param {{ upscale_factor: {r} }}", (shape,), seed=draw(SEEDS))


@layer_case("Reorg")
@st.composite
def reorgs(draw: Any, kind: str) -> LayerCase:
    s, reverse = draw(st.integers(1, 3)), draw(st.booleans())
    n, c, h, w = draw(images(1, 3, st.integers(1, 2)))
    shape = (n, c * s * s, h, w) if reverse else (n, c * s * s, h * s, w * s)
    return LayerCase(kind, f"reorg_param {{ stride: {s} reverse: {str(reverse).lower()} }}", (shape,), seed=draw(SEEDS))


@layer_case("CropCenter")
@st.composite
def crop_centers(draw: Any, kind: str) -> LayerCase:
    shape = draw(shapes(2, 4, 9))
    crops = [0, *(draw(st.integers(0, (n - 1) // 2)) for n in shape[1:])]
    body = "crop_center_param { " + " ".join(f"crop_size: {n}" for n in crops) + " }"
    return LayerCase(kind, body, (shape,), seed=draw(SEEDS))


@layer_case("PriorBox")
@st.composite
def prior_boxes(draw: Any, kind: str) -> LayerCase:
    small = draw(st.lists(st.floats(1, 60).map(lambda x: round(x, 2)), min_size=1, max_size=2))
    large = [a + draw(st.integers(1, 40)) for a in small] if draw(st.booleans()) else []
    ratios = draw(st.lists(st.sampled_from([1, 2, 3, 0.5, 0.33333334, 2.5]), max_size=3))
    variances = draw(st.sampled_from([[], [0.2], [0.1, 0.1, 0.2, 0.2]]))
    fields = {"min_size": small, "max_size": large, "aspect_ratio": ratios, "variance": variances}
    extra = " ".join(f"{name}: {str(draw(st.booleans())).lower()}" for name in ("flip", "clip"))
    image = draw(st.sampled_from(["", "img_size: 100", "img_h: 90 img_w: 120"]))
    step = draw(st.sampled_from(["", "step: 8", "step_h: 16 step_w: 7.5"]))
    body = " ".join(f"{name}: {value}" for name, values in fields.items() for value in values)
    body = f"prior_box_param {{ {body} {extra} {image} {step} offset: {draw(st.sampled_from([0.5, 0.25]))} }}"
    if draw(st.integers(0, 4)) == 0:
        squares = draw(st.lists(st.tuples(st.integers(4, 40), st.integers(1, 3)), min_size=1, max_size=2))
        sizes = " ".join(f"fixed_size: {side} density: {density}" for side, density in squares)
        body = f"prior_box_param {{ {sizes} {image} {step} }}"
    cells, pixels = draw(images(1, 4)), draw(images(20, 60))
    return LayerCase(kind, body, (cells, pixels))


@layer_case("PriorBoxClustered")
@st.composite
def clustered_prior_boxes(draw: Any, kind: str) -> LayerCase:
    sides = draw(st.lists(st.tuples(*[st.floats(1, 90).map(lambda x: round(x, 1))] * 2), min_size=1, max_size=3))
    boxes = " ".join(f"width: {width} height: {height}" for width, height in sides)
    extra = draw(st.sampled_from(["", "variance: 0.2", "clip: true img_size: 80", "step: 8", "step_h: 16 step_w: 7.5"]))
    body = f"prior_box_param {{ {boxes} {extra} offset: {draw(st.sampled_from([0.5, 0.25]))} }}"
    return LayerCase(kind, body, (draw(images(1, 4)), draw(images(20, 60))))


@layer_case("DetectionOutput")
@st.composite
def detection_outputs(draw: Any, kind: str) -> LayerCase:
    images, boxes, classes = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(2, 4))
    shared, background = draw(st.booleans()), draw(st.integers(-1, classes - 1))
    code = draw(st.sampled_from(["CORNER", "CENTER_SIZE", "CORNER_SIZE"]))
    fields = {
        "num_classes": classes,
        "share_location": str(shared).lower(),
        "background_label_id": background,
        "code_type": code,
        "variance_encoded_in_target": str(draw(st.booleans())).lower(),
        "keep_top_k": draw(st.sampled_from([-1, 0, 1, 3, 8, 200])),
        "confidence_threshold": draw(st.sampled_from([None, 0.01, 0.5, 2])),
        "nms_param": f"{{ nms_threshold: {draw(st.sampled_from([0, 0.3, 0.45, 0.9]))} "
        f"top_k: {draw(st.sampled_from([-1, 0, 2, 5, 400]))} }}",
    }
    body = " ".join(f"{name}: {value}" for name, value in fields.items() if value is not None)
    digits = draw(st.sampled_from([1, 6]))  # with one digit there are equal scores

    def priors(rng: Any, shape: Any) -> Any:
        low = rng.uniform(0, 0.7, (boxes, 2))
        corners = np.concatenate([low, low + rng.uniform(0.05, 0.5, (boxes, 2))], axis=1)
        return np.stack([corners, rng.uniform(0.1, 0.3, (boxes, 4))])

    data = {1: lambda rng, shape: rng.random(shape).round(digits), 2: priors}
    shapes = ((images, boxes * (1 if shared else classes) * 4), (images, boxes * classes), (1, 2, boxes * 4))
    if shared and draw(st.integers(0, 2)) == 0:  # RefineDet's two steps
        shapes, data[3] = (*shapes, (images, boxes * 2), (images, boxes * 4)), lambda rng, shape: rng.random(shape)
        body += f" objectness_score: {draw(st.sampled_from([0.01, 0.3]))}"
    return LayerCase(kind, f"detection_output_param {{ {body} }}", shapes, data=data, seed=draw(SEEDS))


def _regions(images: int, side: float) -> Callable[[Any, Any], Any]:
    """Fills rows (image, x1, y1, x2, y2), some of them outside or turned inside out, many at halves."""

    def fill(rng: Any, shape: Any) -> Any:
        rows = rng.uniform(-0.3, 1.3, (shape[0], 5)) * side
        rows = np.where(rng.random(rows.shape) < 0.5, rows.round() + 0.5, rows)
        rows[:, 0] = rng.integers(0, images, shape[0])
        return rows

    return fill


@layer_case("ROIPooling", "PSROIPooling")
@st.composite
def roi_poolings(draw: Any, kind: str) -> LayerCase:
    n, c, h, w = draw(images(3, 9))
    scale, regions = draw(st.sampled_from([1, 0.5, 0.0625])), draw(st.integers(1, 4))
    rows = draw(st.sampled_from([(regions, 5), (regions, 5, 1, 1)]))
    if kind == "ROIPooling":
        grid = f"pooled_h: {draw(st.integers(1, 7))} pooled_w: {draw(st.integers(1, 7))}"
        body = f"roi_pooling_param {{ {grid} spatial_scale: {scale} }}"
    else:
        size = draw(st.integers(1, 3))
        body = f"psroi_pooling_param {{ output_dim: {c} group_size: {size} spatial_scale: {scale} }}"
        c *= size * size
    return LayerCase(kind, body, ((n, c, h, w), rows), data={1: _regions(n, max(h, w) / scale)}, seed=draw(SEEDS))


# -- nets to be written ----------------------------------------------------------------------


@st.composite
def arrays(draw: Any) -> np.ndarray:
    """Any bits of a blob's types, in any shape: signs of zero, payloads of NaN, no values at all."""
    dtype = np.dtype(draw(st.sampled_from(["f2", "f4", "f8"])))
    shape = draw(st.lists(st.integers(0, 3), max_size=5))
    size = dtype.itemsize * int(np.prod(shape))
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


@st.composite
def unknown_nets(draw: Any) -> Net:
    """Layers of an unknown type, of any names, equal ones too, some with blobs of earlier ones."""
    layers: list[Opaque] = []
    pool: list[Blob] = []
    for name in draw(st.lists(NAMES, max_size=4)):
        own = [Blob.of(array) for array in draw(st.lists(arrays(), max_size=3))]
        blobs = own + (draw(st.lists(st.sampled_from(pool), max_size=2, unique_by=id)) if pool else [])
        pool += own
        definition = Message("", name=name, type="Odd")
        held = Blobs({f"blob{index}": blob for index, blob in enumerate(blobs)})
        layers.append(Opaque(name=name, type="Odd", definition=definition, blobs=held))
    return Net(draw(NAMES), tuple(layers))


@layer_case("Proposal", "rpn.proposal_layer.ProposalLayer")
@st.composite
def proposals(draw: Any, kind: str) -> LayerCase:
    python = kind != "Proposal"
    images, h, w = 1 if python else draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    scales = draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=2))
    if python:
        anchors = 3 * len(scales)
        text = f"'feat_stride': {draw(st.sampled_from([8, 16]))}, 'scales': {scales}"
        body = f'python_param {{ module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "{text}" }}'
    else:
        ratios = draw(st.lists(st.sampled_from([0.5, 0.667, 1, 2]), min_size=1, max_size=2))
        anchors = len(ratios) * len(scales)
        lists = " ".join([f"ratio: {r}" for r in ratios] + [f"scale: {s}" for s in scales])
        numbers = {
            "feat_stride": draw(st.sampled_from([8, 16])),
            "min_size": draw(st.sampled_from([4, 16])),
            "pre_nms_topn": draw(st.sampled_from([5, 6000])),
            "post_nms_topn": draw(st.sampled_from([3, 300])),
            "nms_thresh": draw(st.sampled_from([0.3, 0.7])),
        }
        body = f"proposal_param {{ {lists} {' '.join(f'{name}: {value}' for name, value in numbers.items())} }}"
    data = {
        0: lambda rng, shape: rng.random(shape) * 0.9 + 0.05,
        1: lambda rng, shape: rng.standard_normal(shape) * 0.3,
        2: lambda rng, shape: [h * 16 + 3, w * 16 - 2, 1.5, 1.25][: shape[-1]],
    }
    info = (1, 3 if python else draw(st.integers(3, 4)))
    bottoms = ((images, 2 * anchors, h, w), (images, 4 * anchors, h, w), info)
    return LayerCase("Python" if python else kind, body, bottoms, draw(st.integers(1, 2)), data, seed=draw(SEEDS))


# ---- whole nets, for test_equivalence.py -----------------------------------------------------

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
