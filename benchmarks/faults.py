"""The faults that benchmarks/plant.py plants in an exported graph, and the net that they are planted in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 12 dim: 12 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "bn1" batch_norm_param { eps: 0.001 } }
layer { name: "scale1" type: "Scale" bottom: "bn1" top: "scale1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "scale1" top: "relu1" }
layer { name: "norm1" type: "LRN" bottom: "scale1" top: "norm1"
        lrn_param { local_size: 5 alpha: 0.1 beta: 0.75 k: 2 } }
layer { name: "pool1" type: "Pooling" bottom: "norm1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
        convolution_param { num_output: 8 kernel_size: 3 pad: 2 dilation: 2 group: 2 } }
layer { name: "leaky2" type: "ReLU" bottom: "conv2" top: "leaky2" relu_param { negative_slope: 0.1 } }
layer { name: "pool2" type: "Pooling" bottom: "leaky2" top: "pool2"
        pooling_param { pool: AVE kernel_size: 3 stride: 1 pad: 1 } }
layer { name: "up" type: "Deconvolution" bottom: "pool2" top: "up"
        convolution_param { num_output: 6 kernel_size: 4 stride: 2 pad: 1 } }
layer { name: "six" type: "ReLU6" bottom: "up" top: "six" }
layer { name: "slope" type: "PReLU" bottom: "up" top: "slope" }
layer { name: "power" type: "Power" bottom: "up" top: "power" power_param { scale: 0.5 shift: 1.5 } }
layer { name: "elu" type: "ELU" bottom: "power" top: "elu" elu_param { alpha: 0.7 } }
layer { name: "sum" type: "Eltwise" bottom: "elu" bottom: "slope" top: "sum"
        eltwise_param { operation: SUM coeff: 1 coeff: -0.5 } }
layer { name: "maximum" type: "Eltwise" bottom: "six" bottom: "power" top: "maximum"
        eltwise_param { operation: MAX } }
layer { name: "cat" type: "Concat" bottom: "sum" bottom: "maximum" top: "cat" }
layer { name: "crop" type: "Crop" bottom: "cat" bottom: "data" top: "crop" crop_param { axis: 2 offset: 0 } }
layer { name: "mvn" type: "MVN" bottom: "crop" top: "mvn" mvn_param { eps: 0.01 } }
layer { name: "permute" type: "Permute" bottom: "mvn" top: "permute"
        permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "sigmoid" type: "Sigmoid" bottom: "power" top: "sigmoid" }
layer { name: "tanh" type: "TanH" bottom: "sum" top: "tanh" }
layer { name: "clip" type: "Clip" bottom: "sum" top: "clip" clip_param { min: -1 max: 2 } }
layer { name: "step" type: "Threshold" bottom: "clip" top: "step" threshold_param { threshold: -1 } }
layer { name: "slice" type: "Slice" bottom: "permute" top: "left" top: "right"
        slice_param { axis: 3 slice_point: 5 } }
layer { name: "fc1" type: "InnerProduct" bottom: "crop" top: "fc1" inner_product_param { num_output: 12 } }
layer { name: "fc2" type: "InnerProduct" bottom: "fc1" top: "fc2" inner_product_param { num_output: 12 } }
layer { name: "prob" type: "Softmax" bottom: "fc2" top: "prob" }
layer { name: "class" type: "ArgMax" bottom: "fc2" top: "class" }
"""


class Fault(NamedTuple):
    """A fault to plant.

    Attributes:
        where: The layer, or the output, that a report should name.
        plant: Changes the model.
        net: Which net it is planted in; the first, if none is named.
    """

    where: str
    plant: Callable[[Any], object]
    net: str = ""


def node(model: Any, layer: str, op: str) -> Any:
    """The first node of a layer with an operator."""
    return next(found for found in model.graph.node if found.name.startswith(f"{layer}/") and found.op_type == op)


def attribute(layer: str, op: str, name: str, value: Any) -> Callable[[Any], None]:
    """Set an attribute."""

    def plant(model: Any) -> None:
        found = node(model, layer, op)
        kept = [entry for entry in found.attribute if entry.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return plant


def array(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Any], None]:
    """Change an initializer; the manifest of blobs no longer tells of it, so only the values can."""

    def plant(model: Any) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        values = np.array(onnx.numpy_helper.to_array(tensor))
        made = np.ascontiguousarray(change(values), values.dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(made, name))

    return plant


def inputs(layer: str, op: str, change: Callable[[list[str]], list[str]]) -> Callable[[Any], None]:
    """Change what a node reads."""

    def plant(model: Any) -> None:
        found = node(model, layer, op)
        made = change(list(found.input))
        del found.input[:]
        found.input.extend(made)

    return plant


def operator(layer: str, op: str, new: str, keep: int | None = None, **attributes: Any) -> Callable[[Any], None]:
    """Put another operator in place of a node's, with the first ``keep`` inputs."""

    def plant(model: Any) -> None:
        found = node(model, layer, op)
        found.op_type = new
        if keep is not None:
            del found.input[keep:]
        del found.attribute[:]
        found.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in attributes.items())

    return plant


def constant_for(layer: str, op: str) -> Callable[[Any], None]:
    """Put the values that the node has on the first random input in place of the node."""

    def plant(model: Any) -> None:
        import onnxruntime

        found = node(model, layer, op)
        name = found.output[0]
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        data = np.random.default_rng([0, 0]).standard_normal((2, 4, 12, 12), np.float32)
        (values,) = session.run([name], {"data": data})
        found.op_type = "Constant"
        del found.input[:], found.attribute[:]
        found.attribute.append(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(values)))

    return plant


def outputs(change: Callable[[list[Any]], list[Any]]) -> Callable[[Any], None]:
    """Change the list of declared outputs."""

    def plant(model: Any) -> None:
        made = change(list(model.graph.output))
        del model.graph.output[:]
        model.graph.output.extend(made)

    return plant


def behind(name: str, op: str, *more: str) -> Callable[[Any], None]:
    """Add a node behind an output, and give the output's name to what it makes."""

    def plant(model: Any) -> None:
        for found in model.graph.node:
            found.output[:] = [f"{name}_before" if value == name else value for value in found.output]
        model.graph.node.append(onnx.helper.make_node(op, [f"{name}_before", *more], [name], name="planted"))

    return plant


def renamed(old: str, new: str) -> Callable[[Any], None]:
    """Declare another value in place of an output."""

    def plant(model: Any) -> None:
        next(value for value in model.graph.output if value.name == old).name = new

    return plant


def several(*plants: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Plant several changes that are one fault."""

    def plant(model: Any) -> None:
        for step in plants:
            step(model)

    return plant


def swapped(values: np.ndarray) -> np.ndarray:
    """The first two slices exchanged."""
    values[[0, 1]] = values[[1, 0]]
    return values


def first_changed(values: np.ndarray, factor: float) -> np.ndarray:
    """The largest value multiplied by a factor."""
    flat = values.reshape(-1)
    place = int(np.abs(flat).argmax())
    flat[place] = flat[place] * np.float32(factor)
    return values


def half(values: np.ndarray) -> np.ndarray:
    """One value, the one that loses most, rounded to float16."""
    flat = values.reshape(-1)
    rounded = flat.astype(np.float16).astype(np.float32)
    place = int(np.abs(flat - rounded).argmax())
    flat[place] = rounded[place]
    return values


FAULTS: dict[str, Fault] = {
    "conv: pad one less, shape kept": Fault("conv1", attribute("conv1", "Conv", "pads", [0, 0, 2, 2])),
    "conv: pad on one side only": Fault("conv1", attribute("conv1", "Conv", "pads", [2, 1, 0, 1])),
    "conv: pad lost": Fault("conv1", attribute("conv1", "Conv", "pads", [0, 0, 0, 0])),
    "conv: stride 2": Fault("conv1", attribute("conv1", "Conv", "strides", [2, 2])),
    "conv: channels of the output swapped": Fault("conv1", array("conv1.weight", swapped)),
    "conv: kernel rows and columns exchanged": Fault("conv1", array("conv1.weight", lambda w: w.swapaxes(2, 3))),
    "conv: kernel turned round": Fault("conv1", array("conv1.weight", lambda w: w[:, :, ::-1, ::-1])),
    "conv: BGR for RGB": Fault("conv1", array("conv1.weight", lambda w: w[:, ::-1])),
    "conv: bias dropped": Fault("conv1", inputs("conv1", "Conv", lambda names: names[:2])),
    "conv: bias negated": Fault("conv1", array("conv1.bias", np.negative)),
    "conv: biases in another order": Fault("conv1", array("conv1.bias", lambda b: b[::-1])),
    "conv: one weight lost": Fault("conv1", array("conv1.weight", lambda w: first_changed(w, 0))),
    "conv: one weight 0.1 % off": Fault("conv1", array("conv1.weight", lambda w: first_changed(w, 1.001))),
    "conv: one weight rounded to float16": Fault("conv1", array("conv1.weight", half)),
    "conv: dilation lost": Fault(
        "conv2",
        several(
            attribute("conv2", "Conv", "dilations", [1, 1]),
            attribute("conv2", "Conv", "pads", [1, 1, 1, 1]),
        ),
    ),
    "conv: groups exchanged": Fault("conv2", array("conv2.weight", lambda w: np.roll(w, 4, axis=0))),
    "conv: one group too many": Fault(
        "conv2",
        several(attribute("conv2", "Conv", "group", 4), array("conv2.weight", lambda w: w[:, :2])),
    ),
    "batch norm: eps 1e-5": Fault("bn1", attribute("bn1", "BatchNormalization", "epsilon", 1e-5)),
    "batch norm: mean lost": Fault("bn1", array("bn1.mean", np.zeros_like)),
    "batch norm: variance is a deviation": Fault("bn1", array("bn1.variance", np.sqrt)),
    "batch norm: mean and variance exchanged": Fault(
        "bn1", inputs("bn1", "BatchNormalization", lambda names: [*names[:3], names[4], names[3]])
    ),
    "scale: gamma is 1": Fault("scale1", array("scale1.gamma", np.ones_like)),
    "scale: beta lost": Fault("scale1", array("scale1.beta", np.zeros_like)),
    "relu: removed": Fault("relu1", operator("relu1", "Relu", "Identity")),
    "relu: absolute value": Fault("relu1", operator("relu1", "Relu", "Abs")),
    "lrn: alpha not divided": Fault("norm1", attribute("norm1", "LRN", "alpha", 0.5)),
    "lrn: beta 1": Fault("norm1", attribute("norm1", "LRN", "beta", 1.0)),
    "lrn: k 1": Fault("norm1", attribute("norm1", "LRN", "bias", 1.0)),
    "lrn: window of 3": Fault("norm1", attribute("norm1", "LRN", "size", 3)),
    "max pooling: rounds down": Fault("pool1", attribute("pool1", "MaxPool", "pads", [0, 0, 0, 0])),
    "max pooling: one off": Fault("pool1", attribute("pool1", "MaxPool", "pads", [1, 1, 0, 0])),
    "max pooling: average": Fault(
        "pool1", operator("pool1", "MaxPool", "AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    ),
    "max pooling: pad is 0": Fault(
        "pool1",
        several(
            attribute("pool1", "MaxPool", "pads", [0, 0, 0, 0]),
            lambda model: pad_before(model, "pool1", "MaxPool", [0, 0, 0, 0, 0, 0, 1, 1]),
        ),
    ),
    "average pooling: pad not counted": Fault("pool2", attribute("pool2", "AveragePool", "count_include_pad", 0)),
    "average pooling: maximum": Fault(
        "pool2", operator("pool2", "AveragePool", "MaxPool", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    ),
    "leaky relu: slope 0.01": Fault("leaky2", attribute("leaky2", "LeakyRelu", "alpha", 0.01)),
    "leaky relu: slope lost": Fault("leaky2", operator("leaky2", "LeakyRelu", "Relu")),
    "deconvolution: kernel turned round": Fault("up", array("up.weight", lambda w: w[:, :, ::-1, ::-1])),
    "deconvolution: one pixel off": Fault("up", attribute("up", "ConvTranspose", "pads", [2, 2, 0, 0])),
    "deconvolution: bias dropped": Fault("up", inputs("up", "ConvTranspose", lambda names: names[:2])),
    "relu6: relu": Fault("six", operator("six", "Clip", "Relu", keep=1)),
    "relu6: limit 6.01": Fault("six", several(array("six/constant_1", lambda c: c + np.float32(0.01)))),
    "prelu: slopes in another order": Fault("slope", array("slope.slope", lambda s: s[::-1])),
    "prelu: negative values lost": Fault("slope", operator("slope", "PRelu", "Relu", keep=1)),
    "elu: alpha 1": Fault("elu", attribute("elu", "Elu", "alpha", 1.0)),
    "power: shift before scale": Fault(
        "power",
        several(
            lambda model: exchange_operators(model, "power"),
        ),
    ),
    "power: scale lost": Fault("power", operator("power", "Mul", "Identity", keep=1)),
    "sum: coefficient lost": Fault("sum", operator("sum", "Mul", "Identity", keep=1)),
    "sum: operands exchanged": Fault(
        "sum",
        several(
            inputs("sum", "Mul", lambda names: ["elu", names[1]]),
            inputs("sum", "Add", lambda names: ["slope", names[1]]),
        ),
    ),
    "sum: product": Fault("sum", operator("sum", "Add", "Mul")),
    "maximum: minimum": Fault("maximum", operator("maximum", "Max", "Min")),
    "concat: other order": Fault("cat", inputs("cat", "Concat", lambda names: names[::-1])),
    "mvn: per sample": Fault(
        "mvn", several(*(lambda model, place=place: every_axis(model, place) for place in range(2)))
    ),
    "mvn: eps lost": Fault("mvn", operator("mvn", "Add", "Identity", keep=1)),
    "mvn: not divided": Fault("mvn", operator("mvn", "Div", "Identity", keep=1)),
    "permute: other order": Fault("permute", attribute("permute", "Transpose", "perm", [0, 3, 2, 1])),
    "sigmoid: hard sigmoid": Fault("sigmoid", operator("sigmoid", "Sigmoid", "HardSigmoid")),
    "tanh: softsign": Fault("tanh", operator("tanh", "Tanh", "Softsign")),
    "clip: upper limit lost": Fault("clip", inputs("clip", "Clip", lambda names: names[:2])),
    "clip: lower limit lost": Fault("clip", inputs("clip", "Clip", lambda names: [names[0], "", names[2]])),
    "threshold: equal counts": Fault("step", operator("step", "Greater", "GreaterOrEqual")),
    "threshold: less": Fault("step", operator("step", "Greater", "Less")),
    "slice: parts exchanged": Fault("slice", lambda model: exchange_outputs(model)),
    "inner product: weight transposed": Fault("fc2", array("fc2.weight", np.transpose)),
    "inner product: bias dropped": Fault("fc2", inputs("fc2", "Gemm", lambda names: names[:2])),
    "inner product: height and width exchanged": Fault(
        "fc1", array("fc1.weight", lambda w: w.reshape(12, -1, 12, 12).swapaxes(2, 3).reshape(w.shape))
    ),
    "softmax: other axis": Fault("prob", attribute("prob", "Softmax", "axis", 0)),
    "softmax: logarithm": Fault("prob", operator("prob", "Softmax", "LogSoftmax", axis=1)),
    "softmax: a constant": Fault("prob", constant_for("prob", "Softmax")),
    "argmax: argmin": Fault("class", operator("class", "ArgMax", "ArgMin", axis=1)),
    "argmax: last of equal ones, a constant": Fault("class", constant_for("class", "Reshape")),
    "output: doubled": Fault("prob", several(behind("prob", "Add", "prob_before"))),
    "output: another layer's": Fault("prob", renamed("prob", "fc2")),
    "output: removed": Fault("tanh", outputs(lambda values: [v for v in values if v.name != "tanh"])),
    "output: all in reversed order": Fault("relu1", outputs(lambda values: values[::-1])),
    "output: declared twice": Fault("relu1", outputs(lambda values: [*values, values[0]])),
    "output: one more": Fault(
        "conv1",
        outputs(lambda values: [*values, onnx.helper.make_tensor_value_info("conv1", onnx.TensorProto.FLOAT, None)]),
    ),
    "output: wrong extents": Fault("prob", lambda model: wrong_extents(model)),
    "graph: without nodes": Fault("graph", lambda model: model.graph.ClearField("node")),
    "graph: a value made twice": Fault("graph", lambda model: model.graph.node.append(model.graph.node[-1])),
    "graph: an unknown operator": Fault("graph", operator("tanh", "Tanh", "NoSuchOperator")),
}
"""Each fault by a name."""


def pad_before(model: Any, layer: str, op: str, pads: list[int]) -> None:
    """Pad with zeros before a node."""
    found = node(model, layer, op)
    place = list(model.graph.node).index(found)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(pads, np.int64), "planted_pads"))
    padding = onnx.helper.make_node("Pad", [found.input[0], "planted_pads"], ["planted_pad"], name="planted")
    found.input[0] = "planted_pad"
    model.graph.node.insert(place, padding)


def exchange_operators(model: Any, layer: str) -> None:
    """``(x + shift) * scale`` in place of ``x * scale + shift``."""
    first, second = node(model, layer, "Mul"), node(model, layer, "Add")
    first.op_type, second.op_type = "Add", "Mul"
    first.input[1], second.input[1] = second.input[1], first.input[1]


def every_axis(model: Any, place: int) -> None:
    """The mean over channels as well."""
    found = [entry for entry in model.graph.node if entry.op_type == "ReduceMean"][place]
    next(entry for entry in found.attribute if entry.name == "axes").ints[:] = [1, 2, 3]


def exchange_outputs(model: Any) -> None:
    """The parts of a Split under each other's names, with the extents that go with them."""
    found = node(model, "slice", "Split")
    sizes = next(tensor for tensor in model.graph.initializer if tensor.name == "slice/constant")
    values = onnx.numpy_helper.to_array(sizes)[::-1].copy()
    sizes.CopyFrom(onnx.numpy_helper.from_array(values, sizes.name))
    found.output[:] = list(found.output)[::-1]


def wrong_extents(model: Any) -> None:
    """An output that promises one class more than it has."""
    value = next(value for value in model.graph.output if value.name == "prob")
    value.type.tensor_type.shape.dim[1].dim_value += 1
