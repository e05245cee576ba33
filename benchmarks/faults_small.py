"""More faults for benchmarks/plant.py: numbers slightly off, roundings through float16, and inputs that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from benchmarks.faults import Fault, array, attribute, inputs, node, operator, several


def scaled(layer: str, op: str, factor: float) -> Callable[[Any], None]:
    """Multiply the constant that a node has as its second input."""

    def plant(model: Any) -> None:
        name = node(model, layer, op).input[1]
        array(name, lambda values: values * np.float32(factor))(model)

    return plant


def before(name: str, *steps: tuple[str, dict[str, Any]], constants: dict[str, np.ndarray] | None = None) -> Any:
    """Put nodes of one input between the model's input, or a value, and all that read it."""

    def plant(model: Any) -> None:
        extra = list(constants or {})
        for key, value in (constants or {}).items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, key))
        made, last = [], name
        for place, (op, attributes) in enumerate(steps):
            result = f"planted_{place}"
            made.append(onnx.helper.make_node(op, [last, *extra], [result], name=f"planted/{place}", **attributes))
            last = result
        for found in model.graph.node:
            found.input[:] = [last if value == name else value for value in found.input]
        place = next((i + 1 for i, found in enumerate(model.graph.node) if name in found.output), 0)
        kept = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*kept[:place], *made, *kept[place:]])

    return plant


def behind(name: str, *steps: tuple[str, dict[str, Any]]) -> Callable[[Any], None]:
    """Put nodes of one input between the node that makes an output and the output."""

    def plant(model: Any) -> None:
        for found in model.graph.node:
            for values in (found.input, found.output):
                values[:] = [f"{name}_before" if value == name else value for value in values]
        last = f"{name}_before"
        for place, (op, attributes) in enumerate(steps):
            result = name if place == len(steps) - 1 else f"planted_{place}"
            model.graph.node.append(onnx.helper.make_node(op, [last], [result], name=f"planted/{place}", **attributes))
            last = result

    return plant


def extent(axis: int, value: int | None) -> Callable[[Any], None]:
    """Declare another extent of the input; ``None`` leaves it open."""

    def plant(model: Any) -> None:
        dim = model.graph.input[0].type.tensor_type.shape.dim[axis]
        dim.Clear()
        if value is not None:
            dim.dim_value = value

    return plant


def element_type(kind: int) -> Callable[[Any], None]:
    """Declare another type of an output, and cast to it."""

    def plant(model: Any) -> None:
        behind("prob", ("Cast", {"to": kind}))(model)
        next(v for v in model.graph.output if v.name == "prob").type.tensor_type.elem_type = kind

    return plant


def first_name(model: Any) -> None:
    """The input under another name."""
    model.graph.input[0].name = "picture"
    for found in model.graph.node:
        found.input[:] = ["picture" if value == "data" else value for value in found.input]


HALF = (("Cast", {"to": onnx.TensorProto.FLOAT16}), ("Cast", {"to": onnx.TensorProto.FLOAT}))

SMALL: dict[str, Fault] = {
    "batch norm: eps tenfold": Fault("bn1", attribute("bn1", "BatchNormalization", "epsilon", 0.01)),
    "batch norm: eps a tenth": Fault("bn1", attribute("bn1", "BatchNormalization", "epsilon", 0.0001)),
    "lrn: alpha 1 % more": Fault("norm1", attribute("norm1", "LRN", "alpha", 0.101)),
    "lrn: beta 0.76": Fault("norm1", attribute("norm1", "LRN", "beta", 0.76)),
    "lrn: window of 4": Fault("graph", attribute("norm1", "LRN", "size", 4)),
    "lrn: removed": Fault("norm1", operator("norm1", "LRN", "Identity")),
    "relu: leaky by 0.001": Fault("relu1", operator("relu1", "Relu", "LeakyRelu", alpha=0.001)),
    "leaky relu: slope negated": Fault("leaky2", attribute("leaky2", "LeakyRelu", "alpha", -0.1)),
    "leaky relu: slope 0.1 % more": Fault("leaky2", attribute("leaky2", "LeakyRelu", "alpha", 0.1001)),
    "elu: alpha 0.701": Fault("elu", attribute("elu", "Elu", "alpha", 0.701)),
    "elu: leaky relu": Fault("elu", operator("elu", "Elu", "LeakyRelu", alpha=0.7)),
    "elu: celu": Fault("elu", operator("elu", "Elu", "Celu", alpha=0.7)),
    "elu: selu": Fault("elu", operator("elu", "Elu", "Selu", alpha=0.7, gamma=1.001)),
    "sum: sign of a coefficient": Fault("sum", scaled("sum", "Mul", -1)),
    "sum: coefficient 0.1 % off": Fault("sum", scaled("sum", "Mul", 1.001)),
    "sum: difference": Fault("sum", operator("sum", "Add", "Sub")),
    "sum: difference in the other order": Fault(
        "sum", several(operator("sum", "Add", "Sub"), inputs("sum", "Sub", lambda names: names[::-1]))
    ),
    "power: sign of the shift": Fault("power", scaled("power", "Add", -1)),
    "power: scale inverted": Fault("power", operator("power", "Mul", "Div")),
    "power: operands of a difference exchanged": Fault(
        "power", several(operator("power", "Add", "Sub"), inputs("power", "Sub", lambda names: names[::-1]))
    ),
    "clip: removed": Fault("clip", operator("clip", "Clip", "Identity", keep=1)),
    "clip: limits exchanged": Fault("clip", inputs("clip", "Clip", lambda names: [names[0], names[2], names[1]])),
    "clip: upper limit 2.001": Fault("clip", array("clip/constant_1", lambda c: c + np.float32(0.001))),
    "relu6: removed": Fault("six", operator("six", "Clip", "Identity", keep=1)),
    "relu6: lower limit lost": Fault("six", inputs("six", "Clip", lambda names: [names[0], "", names[2]])),
    "prelu: one slope for all": Fault("slope", array("slope.slope", lambda s: np.full_like(s, s.mean()))),
    "prelu: slopes 0.1 % more": Fault("slope", array("slope.slope", lambda s: s * np.float32(1.001))),
    "conv: pad one off across": Fault("conv1", attribute("conv1", "Conv", "pads", [1, 0, 1, 2])),
    "conv: input and output channels exchanged": Fault(
        "conv2", array("conv2.weight", lambda w: w.reshape(2, 4, 4, 3, 3).swapaxes(1, 2).reshape(w.shape))
    ),
    "conv: weights through float16": Fault(
        "conv2", array("conv2.weight", lambda w: w.astype(np.float16).astype(np.float32))
    ),
    "deconvolution: kernel rows and columns exchanged": Fault("up", array("up.weight", lambda w: w.swapaxes(2, 3))),
    "deconvolution: channels of the input swapped": Fault("up", array("up.weight", lambda w: w[[1, 0, *range(2, 8)]])),
    "max pooling: window of 2": Fault(
        "pool1",
        several(attribute("pool1", "MaxPool", "kernel_shape", [2, 2]), attribute("pool1", "MaxPool", "pads", [0] * 4)),
    ),
    "max pooling: rounds down across": Fault(
        "pool1",
        several(attribute("pool1", "MaxPool", "pads", [0, 0, 1, 0]), attribute("pool1", "MaxPool", "ceil_mode", 0)),
    ),
    "average pooling: one off": Fault("pool2", attribute("pool2", "AveragePool", "pads", [2, 1, 0, 1])),
    "average pooling: window of 1": Fault(
        "pool2",
        several(
            attribute("pool2", "AveragePool", "kernel_shape", [1, 1]),
            attribute("pool2", "AveragePool", "pads", [0] * 4),
        ),
    ),
    "concat: along rows": Fault("cat", attribute("cat", "Concat", "axis", 2)),
    "concat: one part twice": Fault("cat", inputs("cat", "Concat", lambda names: [names[0], names[0]])),
    "mvn: eps tenfold": Fault("mvn", scaled("mvn", "Add", 10)),
    "mvn: mean not subtracted": Fault("mvn", inputs("mvn", "Div", lambda names: ["cat", names[1]])),
    "mvn: deviation is a variance": Fault("mvn", operator("mvn", "Sqrt", "Identity")),
    "mvn: difference in the other order": Fault("mvn", inputs("mvn", "Sub", lambda names: names[::-1])),
    "mvn: rows alone": Fault("mvn", attribute("mvn", "ReduceMean", "axes", [3])),
    "permute: rows and columns exchanged": Fault("permute", attribute("permute", "Transpose", "perm", [0, 3, 2, 1])),
    "threshold: 0.001 more": Fault(
        "step",
        several(
            lambda m: m.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(-0.999), "planted")),
            inputs("step", "Greater", lambda names: [names[0], "planted"]),
        ),
    ),
    "threshold: operands exchanged": Fault("step", inputs("step", "Greater", lambda names: names[::-1])),
    "sigmoid: twice": Fault("sigmoid", behind("sigmoid", ("Sigmoid", {}))),
    "tanh: sigmoid": Fault("tanh", operator("tanh", "Tanh", "Sigmoid")),
    "inner product: not transposed": Fault("fc2", attribute("fc2", "Gemm", "transB", 0)),
    "inner product: alpha 0.999": Fault("fc2", attribute("fc2", "Gemm", "alpha", 0.999)),
    "inner product: beta 0.9": Fault("fc2", attribute("fc2", "Gemm", "beta", 0.9)),
    "inner product: channels last": Fault(
        "fc1", array("fc1.weight", lambda w: w.reshape(12, -1, 144).swapaxes(1, 2).reshape(w.shape))
    ),
    "softmax: sharper by 1 %": Fault("prob", before("fc2", ("Mul", {}), constants={"factor": np.float32(1.01)})),
    "argmax: first of equal ones": Fault("class", attribute("class", "ArgMax", "select_last_index", 0)),
    "argmax: over the batch": Fault("graph", attribute("class", "ArgMax", "axis", 0)),
    "output: through float16 and back": Fault("prob", behind("prob", *HALF)),
    "output: through integers and back": Fault(
        "tanh", behind("tanh", ("Cast", {"to": onnx.TensorProto.INT32}), ("Cast", {"to": onnx.TensorProto.FLOAT}))
    ),
    "output: float64": Fault("prob", element_type(onnx.TensorProto.DOUBLE)),
    "output: float16": Fault("prob", element_type(onnx.TensorProto.FLOAT16)),
    "values: through float16 and back": Fault("norm1", behind("norm1", *HALF)),
    "input: through float16 and back": Fault("conv1", before("data", *HALF)),
    "input: rows and columns exchanged": Fault("conv1", before("data", ("Transpose", {"perm": [0, 1, 3, 2]}))),
    "input: channels reversed": Fault(
        "conv1", before("data", ("Gather", {"axis": 1}), constants={"order": np.array([3, 2, 1, 0])})
    ),
    "input: a mean subtracted": Fault("conv1", before("data", ("Sub", {}), constants={"m": np.float32(0.01)})),
    "input: scaled by 1/255": Fault("conv1", before("data", ("Mul", {}), constants={"s": np.float32(1 / 255)})),
    "input: clipped at 0": Fault("conv1", before("data", ("Relu", {}))),
    "input: one row more declared": Fault("data", extent(2, 13)),
    "input: one channel less declared": Fault("data", extent(1, 3)),
    "input: a batch of 5 declared": Fault("data", extent(0, 5)),
    "input: another name": Fault("data", first_name),
}
"""Each fault by a name."""
