"""Faults of further kinds for benchmarks/plant.py: single elements, inserted nodes, declared parts, control flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from benchmarks.faults import Fault, array, attribute, inputs, node, operator, several
from benchmarks.faults_small import HALF, before, behind

RECURRENT = """
layer { name: "words" type: "Input" top: "words" input_param { shape { dim: 4 dim: 2 } } }
layer { name: "cont" type: "Input" top: "cont" input_param { shape { dim: 4 dim: 2 } } }
layer { name: "embed" type: "Embed" bottom: "words" top: "embed" embed_param { input_dim: 9 num_output: 6 } }
layer { name: "lstm" type: "LSTM" bottom: "embed" bottom: "cont" top: "lstm" recurrent_param { num_output: 5 } }
layer { name: "rnn" type: "RNN" bottom: "lstm" bottom: "cont" top: "rnn" recurrent_param { num_output: 4 } }
layer { name: "fc" type: "InnerProduct" bottom: "rnn" top: "fc" inner_product_param { num_output: 7 axis: 2 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" softmax_param { axis: 2 } }
"""

FORKS = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 group: 4 } }
layer { name: "shuffle" type: "ShuffleChannel" bottom: "conv" top: "shuffle" shuffle_channel_param { group: 2 } }
layer { name: "swish" type: "Swish" bottom: "shuffle" top: "swish" }
layer { name: "grow" type: "Interp" bottom: "swish" top: "grow" interp_param { height: 15 width: 15 } }
layer { name: "norm" type: "Normalize" bottom: "grow" top: "norm"
        norm_param { across_spatial: false channel_shared: false } }
layer { name: "up" type: "Upsample" bottom: "swish" top: "up" upsample_param { scale: 2 } }
layer { name: "axpy_scale" type: "Pooling" bottom: "swish" top: "axpy_scale"
        pooling_param { pool: AVE global_pooling: true } }
layer { name: "axpy" type: "Axpy" bottom: "axpy_scale" bottom: "swish" bottom: "conv" top: "axpy" }
layer { name: "reduce" type: "Reduction" bottom: "axpy" top: "reduce" reduction_param { operation: MEAN axis: 2 } }
layer { name: "tile" type: "Tile" bottom: "reduce" top: "tile" tile_param { axis: 1 tiles: 2 } }
layer { name: "hard" type: "HardSigmoid" bottom: "conv" top: "hard" }
"""

NETS = {"recurrent": RECURRENT, "forks": FORKS}
"""The nets besides the first, by the name that a fault gives."""


# -- steps ---------------------------------------------------------------------------------------


def element(name: str, factor: float = 1.0, ulps: int = 0) -> Callable[[Any], None]:
    """The largest element of an initializer times a factor, or some units in the last place away."""

    def change(values: np.ndarray) -> np.ndarray:
        flat = values.reshape(-1)
        place = int(np.abs(flat).argmax())
        for _ in range(ulps):
            flat[place] = np.nextafter(flat[place], np.float32(np.inf))
        flat[place] *= np.float32(factor)
        return values

    return array(name, change)


def bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def rolled(name: str, axis: int) -> Callable[[Any], None]:
    return array(name, lambda values: np.roll(values, 1, axis))


def without_blobs(model: Any) -> None:
    """Take the manifest out, so that weights alone cannot tell."""
    kept = [entry for entry in model.metadata_props if not entry.key.startswith("bridge.")]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def quantised(name: str, scale: float) -> Callable[[Any], None]:
    """A pair of QuantizeLinear and DequantizeLinear behind a value."""

    def plant(model: Any) -> None:
        constants = {"q_scale": np.float32(scale), "q_zero": np.int8(0)}
        both = [onnx.numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
        model.graph.initializer.extend(both)
        place = next(i + 1 for i, found in enumerate(model.graph.node) if name in found.output)
        for found in model.graph.node:
            found.input[:] = ["q_out" if value == name else value for value in found.input]
        made = [
            onnx.helper.make_node("QuantizeLinear", [name, "q_scale", "q_zero"], ["q_in"], name="q/0"),
            onnx.helper.make_node("DequantizeLinear", ["q_in", "q_scale", "q_zero"], ["q_out"], name="q/1"),
        ]
        kept = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*kept[:place], *made, *kept[place:]])

    return plant


def noise(name: str, size: float) -> Callable[[Any], None]:
    """A constant pattern added to a value behind its layer."""

    def plant(model: Any) -> None:
        pattern = np.float32(size) * np.random.default_rng(0).standard_normal(12).astype(np.float32)
        before(name, ("Add", {}), constants={"noise": pattern})(model)

    return plant


def branch(layer: str, op: str, wrong: str, limit: float) -> Callable[[Any], None]:
    """An If that computes the node itself where the sum of its input is below a limit, and something else above."""

    def plant(model: Any) -> None:
        found = node(model, layer, op)
        place = list(model.graph.node).index(found)
        source, target = found.input[0], found.output[0]
        kind = onnx.helper.make_tensor_value_info("b_out", onnx.TensorProto.FLOAT, None)
        graphs = {}
        for key, kernel in (("then_branch", op), ("else_branch", wrong)):
            body = onnx.helper.make_node(kernel, [source], ["b_out"])
            graphs[key] = onnx.helper.make_graph([body], key, [], [kind])
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(limit), "b_limit"))
        made = [
            onnx.helper.make_node("ReduceMax", [source], ["b_sum"], keepdims=0, name="planted/0"),
            onnx.helper.make_node("Less", ["b_sum", "b_limit"], ["b_less"], name="planted/1"),
            onnx.helper.make_node("If", ["b_less"], [target], name="planted/2", **graphs),
        ]
        kept = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*kept[:place], *made, *kept[place + 1 :]])

    return plant


def called(layer: str, op: str, wrong: str) -> Callable[[Any], None]:
    """A function of the model in place of a node, which computes another operator."""

    def plant(model: Any) -> None:
        found = node(model, layer, op)
        opset = [onnx.helper.make_opsetid("", model.opset_import[0].version)]
        body = onnx.helper.make_node(wrong, ["x"], ["y"])
        model.functions.append(onnx.helper.make_function("own", "Act", ["x"], ["y"], [body], opset))
        model.opset_import.append(onnx.helper.make_opsetid("own", 1))
        found.op_type, found.domain = "Act", "own"

    return plant


def twice(layer: str, op: str) -> Callable[[Any], None]:
    """A node run on its own result again."""

    def plant(model: Any) -> None:
        found = node(model, layer, op)
        place = list(model.graph.node).index(found)
        again = onnx.NodeProto()
        again.CopyFrom(found)
        found.output[0] = f"{found.output[0]}_first"
        again.input[0], again.name = found.output[0], f"{found.name}_again"
        model.graph.node.insert(place + 1, again)

    return plant


def reads(layer: str, op: str, place: int, other: str) -> Callable[[Any], None]:
    return inputs(layer, op, lambda names: [*names[:place], other, *names[place + 1 :]])


def renamed(layer: str, op: str, new: str) -> Callable[[Any], None]:
    """Another operator, with the same inputs and attributes."""

    def plant(model: Any) -> None:
        node(model, layer, op).op_type = new

    return plant


def opset(number: int) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        model.opset_import[0].version = number

    return plant


def declared(output: str, **fields: Any) -> Callable[[Any], None]:
    """Another type, or other extents, of an output."""

    def plant(model: Any) -> None:
        value = next(value for value in model.graph.output if value.name == output)
        for key, wanted in fields.items():
            if key == "kind":
                value.type.tensor_type.elem_type = wanted
            else:
                del value.type.tensor_type.shape.dim[:]
                for extent in wanted:
                    value.type.tensor_type.shape.dim.add(dim_value=extent)

    return plant


def random_output(model: Any) -> None:
    """Random numbers in place of an output."""
    found = node(model, "tanh", "Tanh")
    found.op_type = "RandomNormalLike"
    del found.attribute[:]


def exchanged(*names: str) -> Callable[[Any], None]:
    """The values of two initializers of one shape, exchanged."""

    def plant(model: Any) -> None:
        a, b = (next(tensor for tensor in model.graph.initializer if tensor.name == name) for name in names)
        values = [onnx.numpy_helper.to_array(tensor).copy() for tensor in (a, b)]
        a.CopyFrom(onnx.numpy_helper.from_array(values[1].reshape(values[0].shape), a.name))
        b.CopyFrom(onnx.numpy_helper.from_array(values[0].reshape(values[1].shape), b.name))

    return plant


def fault(where: str, *plants: Callable[[Any], Any], net: str = "", blind: bool = True) -> Fault:
    """A fault; without the manifest of blobs where weights would tell it at once."""
    return Fault(where, several(*([without_blobs] if blind else []), *plants), net)


DOUBLE, INT64 = onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64

KINDS: dict[str, Fault] = {
    "weight: one element 0.1 % more": fault("conv1", element("conv1.weight", 1.001)),
    "weight: one element 2000 ulp": fault("fc2", element("fc2.weight", ulps=2000)),
    "weight: one element 10 ulp": fault("conv2", element("conv2.weight", ulps=10), blind=False),
    "weight: one element 0": fault("fc1", element("fc1.weight", 0.0)),
    "weight: one element infinite": fault("fc2", element("fc2.weight", np.inf)),
    "weight: one element NaN": fault("up", element("up.weight", np.nan)),
    "weight: one element negated": fault("conv2", element("conv2.weight", -1.0)),
    "weight: filters rolled": fault("conv2", rolled("conv2.weight", 0)),
    "weight: kernels moved by a column": fault("conv1", rolled("conv1.weight", 3)),
    "weight: rows rolled": fault("fc2", rolled("fc2.weight", 1)),
    "weight: quantised to 8 bits": fault(
        "fc1", array("fc1.weight", lambda w: np.rint(w / np.abs(w).max() * 127) * (np.abs(w).max() / 127))
    ),
    "weight: bfloat16": fault("conv1", array("conv1.weight", bfloat16)),
    "bias: rolled": fault("fc1", rolled("fc1.bias", 0)),
    "bias: of another layer": fault("conv1", exchanged("conv1.bias", "conv2.bias")),
    "bias: one element 1e-4 off": fault("up", array("up.bias", lambda b: b + np.float32([1e-4, 0, 0, 0, 0, 0]))),
    "statistics: mean and shift exchanged": fault("bn1", exchanged("bn1.mean", "scale1.beta")),
    "statistics: deviation for variance": fault("bn1", array("bn1.variance", np.sqrt)),
    "statistics: variance rolled": fault("bn1", rolled("bn1.variance", 0)),
    "conv: dilation lost": fault("conv2", attribute("conv2", "Conv", "dilations", [1, 1])),
    "conv: dilation across only": fault(
        "conv2", attribute("conv2", "Conv", "dilations", [1, 2]), attribute("conv2", "Conv", "pads", [1, 2, 1, 2])
    ),
    "conv: padding by auto_pad": fault(
        "pool1", operator("pool1", "MaxPool", "MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")
    ),
    "deconvolution: output_padding": fault(
        "up",
        attribute("up", "ConvTranspose", "output_padding", [1, 1]),
        attribute("up", "ConvTranspose", "pads", [2, 2, 1, 1]),
    ),
    "deconvolution: pads moved": fault("up", attribute("up", "ConvTranspose", "pads", [0, 0, 2, 2])),
    "average pooling: padding not counted": fault("pool2", attribute("pool2", "AveragePool", "count_include_pad", 0)),
    "average pooling: maximum": fault(
        "pool2", operator("pool2", "AveragePool", "MaxPool", kernel_shape=[3, 3], pads=[1] * 4)
    ),
    "max pooling: ceil_mode and other pads": fault(
        "pool1", attribute("pool1", "MaxPool", "ceil_mode", 1), attribute("pool1", "MaxPool", "pads", [1, 1, 0, 0])
    ),
    "max pooling: dilated": fault(
        "pool1", attribute("pool1", "MaxPool", "dilations", [2, 2]), attribute("pool1", "MaxPool", "pads", [1, 1, 2, 2])
    ),
    "max pooling: Lp": fault(
        "pool1", operator("pool1", "MaxPool", "LpPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1], p=8)
    ),
    "lrn: bias 1": fault("norm1", attribute("norm1", "LRN", "bias", 1.0)),
    "lrn: size 3": fault("norm1", attribute("norm1", "LRN", "size", 3)),
    "batch norm: training mode": fault("graph", attribute("bn1", "BatchNormalization", "training_mode", 1)),
    "softmax: over flattened values": fault("prob", operator("prob", "Softmax", "Hardmax", axis=1)),
    "inner product: flattened from axis 2": fault("graph", attribute("fc1", "Flatten", "axis", 2)),
    "bias: of another layer, both": fault("fc1", exchanged("fc2.bias", "fc1.bias")),
    "concat: parts exchanged": fault("cat", inputs("cat", "Concat", lambda names: names[::-1])),
    "max: minimum": fault("maximum", operator("maximum", "Max", "Min")),
    "max: one part twice": fault("maximum", reads("maximum", "Max", 0, "power")),
    "sum: before the activation": fault("sum", reads("sum", "Add", 0, "power")),
    "permute: not done": fault("permute", attribute("permute", "Transpose", "perm", [0, 3, 2, 1])),
    "split: sizes moved": fault("slice", array("slice/constant", lambda s: s + np.array([1, -1]))),
    "split: along rows": fault("slice", attribute("slice", "Split", "axis", 1)),
    "cast: through int32": fault("elu", before("power", ("Cast", {"to": 6}), ("Cast", {"to": 1}))),
    "cast: through float16 before a layer": fault("fc2", before("fc1", *HALF)),
    "cast: threshold to bool and back": fault("sigmoid", behind("sigmoid", ("Cast", {"to": 9}), ("Cast", {"to": 1}))),
    "quantised: a value, fine": fault("pool1", quantised("norm1", 0.02)),
    "quantised: a value, coarse": fault("six", quantised("up", 0.2)),
    "noise: 1e-3": fault("fc2", noise("fc1", 1e-3)),
    "noise: 3e-5": fault("fc2", noise("fc1", 3e-5)),
    "if: wrong for large inputs": fault("relu1", branch("relu1", "Relu", "Abs", 20.0)),
    "if: wrong for small inputs": fault("tanh", branch("tanh", "Tanh", "Identity", 0.5)),
    "function: another operator in it": fault("relu1", called("relu1", "Relu", "Softplus")),
    "function: nearly the same operator": fault("elu", called("elu", "Elu", "Selu")),
    "nodes: one twice": fault("sigmoid", twice("sigmoid", "Sigmoid")),
    "nodes: normalised twice": fault("norm1", twice("norm1", "LRN")),
    "nodes: a random one": fault("tanh", random_output),
    "nodes: reads the layer before": fault("pool1", reads("pool1", "MaxPool", 0, "scale1")),
    "nodes: skips an activation": fault("pool2", reads("pool2", "AveragePool", 0, "conv2")),
    "opset: a number of today's future": fault("graph", opset(999)),
    "opset: one in which an operator means another thing": fault("graph", opset(11)),
    "output: declared as float64": fault("prob", declared("prob", kind=DOUBLE)),
    "output: declared as int64": fault("class", declared("class", kind=INT64)),
    "output: declared without its last axis": fault("prob", declared("prob", shape=[2])),
    "output: declared with a fixed batch of 7": fault("tanh", declared("tanh", shape=[7, 6, 12, 12])),
    "words: one off": fault("embed", before("words", ("Add", {}), constants={"one": np.float32(1)}), net="recurrent"),
    "embed: two words exchanged": fault(
        "embed", array("embed.weight", lambda w: w[[1, 0, *range(2, 9)]]), net="recurrent"
    ),
    "lstm: gates in another order": fault(
        "lstm", lambda m: gates(m, "LSTM", [0, 2, 1, 3]), net="recurrent"
    ),
    "lstm: bias of the forget gate one more": fault("lstm", lambda m: gates(m, "LSTM", None), net="recurrent"),
    "recurrent: flags not read": fault(
        "lstm", before("cont", ("Mul", {}), constants={"none": np.float32(0)}), net="recurrent"
    ),
    "recurrent: flags all set": fault("lstm", before("cont", ("Exp", {}), ("Sign", {})), net="recurrent"),
    "recurrent: softmax over time": fault("prob", attribute("prob", "Softmax", "axis", 0), net="recurrent"),
    "forks: shuffled in other groups": fault("shuffle", array("shuffle/constant", np.sort), net="forks"),
    "forks: resized without corners": fault(
        "grow", attribute("grow", "Resize", "coordinate_transformation_mode", "half_pixel"), net="forks"
    ),
    "forks: resized to the nearest": fault("grow", attribute("grow", "Resize", "mode", "nearest"), net="forks"),
    "forks: hard sigmoid's slope": fault("hard", attribute("hard", "HardSigmoid", "alpha", 0.21), net="forks"),
    "forks: hard sigmoid's offset": fault("hard", attribute("hard", "HardSigmoid", "beta", 0.501), net="forks"),
    "forks: the largest for the mean": fault("reduce", renamed("reduce", "ReduceMean", "ReduceMax"), net="forks"),
    "forks: one scale for all channels": fault("norm", array("norm.scale", np.flip), net="forks"),
    "forks: parts of an affine sum exchanged": fault(
        "axpy", reads("axpy", "Mul", 1, "conv"), reads("axpy", "Add", 1, "swish"), net="forks"
    ),
}  # fmt: skip
"""Each fault by a name."""


def gates(model: Any, op: str, order: list[int] | None) -> None:
    """The gates of a recurrent layer in another order, or a bias one more."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    name = next(name for name in found if name.startswith("lstm") and "bias" in name)
    values = onnx.numpy_helper.to_array(found[name]).copy()
    flat = values.reshape(-1)
    if order is None:
        flat[5:10] += 1
    else:
        flat[:] = flat.reshape(4, -1)[order].reshape(-1)
    found[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
