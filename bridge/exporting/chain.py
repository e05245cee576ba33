"""ONNX from a chain that no net describes, by ``onnx_chainer`` and corrected converters.

``onnx_chainer`` runs the chain and turns each function into nodes. What it says wrongly of
Chainer's functions is said anew here, and what our own functions are, too.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge.chain.devices import to_host
from bridge.chain.functions import chainer
from bridge.chain.functions.convolution import Convolution, Deconvolution
from bridge.errors import DifferenceError, MissingExtraError, ModelError, UnsupportedLayerError
from bridge.layers.pooled_axis import LOWEST, PooledAxis
from bridge.onnx_export.operators import Op
from bridge.schema import count, times

_OLDEST, _NATIVE, _DEFAULT = 7, 11, 17
_RTOL, _ATOL = 1e-3, 1e-5


def export_chain(
    chain: Any,
    args: Any,
    path: str | Path,
    *,
    opset: int = _DEFAULT,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    check: bool = True,
) -> None:
    """Write a chain as ONNX, as it computes in test mode.

    For a chain that a net describes, :func:`bridge.from_chain` and :func:`bridge.export_onnx` do better:
    they leave the batch open and keep names. Here every extent is that of ``args``.

    Args:
        chain: Any :class:`chainer.Link`.
        args: What to call it with: an array, a list or tuple of arrays, or a dict of them by keyword.
        path: The file.
        opset: Version of the default operator set, from 7 on.
        input_names: Names for the inputs, in order.
        output_names: Names for the outputs, in order; a dict's have its keys.
        check: Run the model in onnxruntime, where that is installed, and compare with the chain.

    Raises:
        UnsupportedLayerError: ONNX, or ``onnx_chainer``, lacks a function of the chain.
        DifferenceError: The model does not compute what the chain computes; nothing is written.
        MissingExtraError: onnx is not installed.
    """
    from bridge.files.atomic import atomic
    from bridge.onnx_export.foreign import finished

    inputs = _named(args, input_names, "Input_")
    outputs = _outputs(chain, args, output_names)  # this also initializes parameters without a size
    model = finished(_exported(chain, args, list(inputs), list(outputs), min(opset, _NATIVE)), opset, _OLDEST)
    data = model.SerializeToString()
    if check:
        _check(data, inputs, outputs)
    with atomic(path) as stream:
        stream.write(data)


def _named(values: Any, names: Sequence[str] | None, prefix: str) -> dict[str, np.ndarray]:
    """Arrays by name: the given names, a dict's keys, or numbered."""
    keyed = isinstance(values, Mapping)
    if keyed:
        values, names = list(values.values()), names or list(values)
    elif not isinstance(values, (list, tuple)):
        values = [values]
    names = names or [f"{prefix}{index}" for index in range(len(values))]
    if len(names) != len(values):
        raise ModelError(f"{len(names)} names for {len(values)} {prefix.lower().strip('_')}s: {', '.join(names)}")
    return {name: to_host(chainer.as_array(value)) for name, value in zip(names, values, strict=True)}


def _outputs(chain: Any, args: Any, names: Sequence[str] | None) -> dict[str, np.ndarray]:
    with chainer.using_config("train", False), chainer.no_backprop_mode():
        if isinstance(args, Mapping):
            made = chain(**args)
        else:
            made = chain(*args) if isinstance(args, (list, tuple)) else chain(args)
    return _named(made, names, "Output_")


def _exported(chain: Any, args: Any, inputs: list[str], outputs: list[str], opset: int) -> Any:
    onnx_chainer = _onnx_chainer()
    copied = dict(args) if isinstance(args, Mapping) else list(args) if isinstance(args, (list, tuple)) else args
    single = not isinstance(copied, (dict, list))
    with _quiet():
        try:
            return onnx_chainer.export(
                chain,
                copied,
                opset_version=opset,
                input_names=inputs[0] if single else inputs,
                output_names=outputs,
                external_converters={name: _Converter(make) for name, make in _CONVERTERS.items()},
                no_testcase=True,
            )
        except (AssertionError, NotImplementedError, ValueError) as error:
            problem = str(error) or "it cannot name the outputs; is one of them an input?"
            raise UnsupportedLayerError(f"onnx_chainer: {problem}", where=type(chain).__name__) from None


def _onnx_chainer() -> Any:
    import importlib

    try:
        return importlib.import_module("onnx_chainer")
    except ImportError as error:
        raise MissingExtraError(f"onnx_chainer does not import: {error}", hint="pip install onnx") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings of ``onnx_chainer`` about its own code."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", kind)
        yield


def _check(data: bytes, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    from bridge import engines

    if engines.missing("onnxruntime") is not None:
        return
    for name, array in _run(data, inputs).items():
        expected = outputs[name]
        if array.shape != expected.shape:
            raise DifferenceError(
                f"output '{name}' is {times(array.shape)} in ONNX Runtime, not {times(expected.shape)}"
            )
        if not np.allclose(array, expected, _RTOL, _ATOL, equal_nan=True):
            raise DifferenceError(
                f"output '{name}' in ONNX Runtime is not what the chain computes: off by up to "
                f"{np.abs(array - expected).max():.2g}"
            )


def _run(data: bytes, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    from bridge.engines.onnxruntime import raised, runtime

    ort = runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        fed = {value.name: inputs[value.name] for value in session.get_inputs()}
        return dict(zip(names, session.run(names, fed), strict=True))
    except raised() as error:
        text = " ".join(str(error).split())
        raise ModelError(
            f"ONNX Runtime refuses the export: {text}", hint="check=False writes it all the same"
        ) from None


# -- functions to nodes --------------------------------------------------------------------------


class _Converter:
    """A converter of one function, in the form that ``onnx_chainer`` calls."""

    def __init__(self, make: Callable[[Any, _Nodes], None]) -> None:
        self.make = make

    def __call__(self, params: Any) -> Any:
        nodes = _Nodes(params)
        self.make(params.func, nodes)
        return nodes.made


class _Nodes:
    """Makes the nodes of one function."""

    def __init__(self, params: Any) -> None:
        self.inputs, self.outputs = list(params.input_names), list(params.output_names)
        self.opset: int = params.opset_version
        self.made: list[Any] = []
        self._context = params.context

    def const(self, values: Any, name: str, dtype: Any = np.int64) -> str:
        """The name of a constant."""
        return str(self._context.add_const(np.asarray(values, dtype), name))

    def op(self, kind: str, inputs: Sequence[str], outputs: Sequence[str] | None = None, **attributes: Any) -> str:
        """Add a node; without ``outputs`` its result gets a new name."""
        names = list(outputs or [f"{self.outputs[0]}/{kind}"])
        node = _onnx_chainer().onnx_helper.make_node(kind, list(inputs), names, **attributes)
        node.name = f"{names[0]}/{kind}"  # unique, as a value's name is
        self.made.append(node)
        return names[0]


def _pair(function: Any, name: str) -> tuple[int, ...]:
    """Stride, pad or dilation per axis, as functions of two dimensions and of N name them."""
    own = getattr(function, {"s": "stride", "p": "pad", "d": "dilate"}[name], None)
    return tuple(own) if own is not None else (getattr(function, f"{name}y" if name != "p" else "ph"),
                                               getattr(function, f"{name}x" if name != "p" else "pw"))  # fmt: skip


def _spaces(function: Any) -> tuple[Sequence[int], Sequence[int]]:
    return function.inputs[0].shape[2:], function.outputs[0]().shape[2:]


def _convolution(function: Any, g: _Nodes) -> None:
    kernel = function.inputs[1].shape[2:]
    stride, pad, dilation = (_pair(function, name) for name in "spd")
    trailing = [
        max(p, (o - 1) * s + (k - 1) * d + 1 - n - p) if function.cover_all else p
        for n, o, k, s, p, d in zip(*_spaces(function), kernel, stride, pad, dilation, strict=True)
    ]
    attributes = {"kernel_shape": kernel, "strides": stride, "dilations": dilation, "group": function.groups}
    g.op("Conv", g.inputs, g.outputs, pads=(*pad, *trailing), **attributes)


def _deconvolution(function: Any, g: _Nodes) -> None:
    kernel = function.inputs[1].shape[2:]
    stride, pad, dilation = (_pair(function, name) for name in "spd")
    missing = [
        o - (s * (n - 1) + (k - 1) * d + 1 - 2 * p)
        for n, o, k, s, p, d in zip(*_spaces(function), kernel, stride, pad, dilation, strict=True)
    ]
    trailing = [p - min(m, 0) for p, m in zip(pad, missing, strict=True)]
    attributes = {"kernel_shape": kernel, "strides": stride, "dilations": dilation, "group": function.groups}
    more = {"output_padding": [max(m, 0) for m in missing]} if max(missing) > 0 else {}
    g.op("ConvTranspose", g.inputs, g.outputs, pads=(*pad, *trailing), **attributes, **more)


def _pool(kind: str) -> Callable[[Any, _Nodes], None]:
    """A pooling whose trailing padding ends with its last window; runtimes demand that."""

    def make(function: Any, g: _Nodes) -> None:
        (n, o), stride, pad = _spaces(function), _pair(function, "s"), _pair(function, "p")
        kernel = getattr(function, "ksize", None) or (function.kh, function.kw)
        axes = [PooledAxis(*axis) for axis in zip(n, kernel, stride, pad, strict=True)]
        inside = [min(count, axis.inside) for count, axis in zip(o, axes, strict=True)]
        _windows(kind, g, axes, inside, list(o), -np.inf)

    return make


def _windows(
    kind: str, g: _Nodes, axes: Sequence[PooledAxis], inside: Sequence[int], wanted: Sequence[int], empty: float
) -> None:
    """A pooling with ``inside`` windows per axis, followed by empty ones up to ``wanted``."""
    reach = [(i - 1) * a.stride + a.kernel - a.extent - a.pad for i, a in zip(inside, axes, strict=True)]
    attributes: dict[str, Any] = {
        "kernel_shape": [axis.kernel for axis in axes],
        "strides": [axis.stride for axis in axes],
        "pads": [*(axis.pad for axis in axes), *(max(0, r) for r in reach)],
        **({"count_include_pad": 1} if kind == "AveragePool" else {}),
    }
    spare = [w - i for w, i in zip(wanted, inside, strict=True)]
    if not any(spare):
        g.op(kind, g.inputs, g.outputs, **attributes)
        return
    if g.opset < _NATIVE:
        raise ValueError(f"a pooling with empty windows needs opset {_NATIVE} or newer")
    full = g.op(kind, g.inputs, **attributes)
    pads = g.const([0] * (4 + len(axes)) + spare, "pads")
    g.op("Pad", [full, pads, g.const(empty, "empty", np.float32)], g.outputs)


def _caffes(kind: str, empty: float) -> Callable[[Any, _Nodes], None]:
    """A pooling with Caffe's windows; sums are averages times the kernel's area."""

    def make(function: Any, g: _Nodes) -> None:
        axes, own = function.axes, g.outputs
        if kind == "AveragePool":
            g.outputs = [f"{own[0]}/mean"]
        _windows(kind, g, axes, [axis.inside for axis in axes], [axis.count for axis in axes], empty)
        if kind == "AveragePool":
            area = g.const(count([axis.kernel for axis in axes]), "area", np.float32)
            g.op("Mul", [g.outputs[0], area], own)

    return make


def _prelu(function: Any, g: _Nodes) -> None:
    """Chainer's slope has the axes after the batch; ONNX aligns it with the last axes."""
    x, slope = function.inputs
    shape = (*slope.shape, *[1] * (len(x.shape) - 1 - len(slope.shape)))
    aligned = g.op(Op.Reshape, [g.inputs[1], g.const(shape, "shape")])
    g.op("PRelu", [g.inputs[0], aligned], g.outputs)


def _resize(function: Any, g: _Nodes) -> None:
    if g.opset < _NATIVE:
        raise ValueError(f"resize_images needs opset {_NATIVE} or newer")
    if function.mode == "nearest":
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        transformation = "align_corners" if function.align_corners else "half_pixel"
        how = {"mode": "linear", "coordinate_transformation_mode": transformation}
    nothing = [g.const([], name, np.float32) for name in ("roi", "scales")]
    sizes = g.const((*function.inputs[0].shape[:2], function.out_H, function.out_W), "sizes")
    g.op("Resize", [*g.inputs, *nothing, sizes], g.outputs, **how)


_CONVERTERS: dict[str, Callable[[Any, _Nodes], None]] = {
    "Convolution2DFunction": _convolution,
    "ConvolutionND": _convolution,
    "Deconvolution2DFunction": _deconvolution,
    "DeconvolutionND": _deconvolution,
    "MaxPooling2D": _pool("MaxPool"),
    "MaxPoolingND": _pool("MaxPool"),
    "AveragePooling2D": _pool("AveragePool"),
    "AveragePoolingND": _pool("AveragePool"),
    "PReLUFunction": _prelu,
    "ResizeImages": _resize,
    # our own
    Convolution.__name__: _convolution,
    Deconvolution.__name__: _deconvolution,
    "MaxPooling": _caffes("MaxPool", LOWEST),
    "WindowSum": _caffes("AveragePool", 0),
}
"""Class name of a function -> its converter, where ``onnx_chainer`` has none or a wrong one."""
