"""Parameters, wiring and shapes that the real Caffe refuses are refused here too, in one clear line."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import BridgeError, FormatError, ModelError, UnsupportedLayerError
from bridge.layers import build_layer
from bridge.schema.message import Message
from bridge.testing import LayerCase

IMAGE = (2, 6, 5, 5)
CASES = [
    ("ReLU", "", (IMAGE, IMAGE), 1, "has 2 bottoms, expected 1"),
    ("PriorBox", "prior_box_param { min_size: 4 density: 2 }", (IMAGE, IMAGE), 1,
     "has density or fixed_ratio without fixed_size"),
    ("PriorBox", "prior_box_param { fixed_size: 4 density: 2 fixed_ratio: -1 }", (IMAGE, IMAGE), 1,
     "parameter 'fixed_ratio' has a value that is not positive"),
    ("ReLU", "", (IMAGE,), 2, "has 2 tops, expected 1"),
    ("Eltwise", "", (IMAGE,), 1, "has 1 bottoms, expected at least 2"),
    ("Scale", "", (IMAGE,) * 3, 1, "has 3 bottoms, expected 1 to 2"),
    ("Silence", "", (IMAGE,), 1, "has 1 tops, expected 0"),
    ("Convolution", "convolution_param { num_output: 4 }", (IMAGE,), 1, "parameter 'kernel_size' is missing"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 kernel_h: 2 }", (IMAGE,), 1,
     "has both 'kernel_size' and 'kernel_h' or 'kernel_w', expected one kind"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 group: 5 }", (IMAGE,), 1,
     "4 outputs do not divide into 5 groups"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 group: 4 }", (IMAGE,), 1,
     "6 input channels do not divide into 4 groups"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 9 }", (IMAGE,), 1,
     r"kernel \(9, 9\) does not fit the input \(5, 5\)"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 stride: 1 stride: 2 stride: 1 }", (IMAGE,), 1,
     "stride has 3 values, expected 1 or 2"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 1 axis: 4 }", (IMAGE,), 1,
     "axis 4 is outside the 4 axes of the input"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 1 }", (IMAGE, (2, 6, 5, 4)), 2,
     "bottom 1 is 2 x 6 x 5 x 4, expected 2 x 6 x 5 x 5 as bottom 0"),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 1 }", (IMAGE, IMAGE), 1,
     "has 2 bottoms and 1 tops"),
    ("Deconvolution", "convolution_param { num_output: 4 kernel_size: 2 pad: 4 }", (IMAGE,), 1,
     "does not fit the input"),
    ("Pooling", "pooling_param { kernel_size: 2 pad: 2 }", (IMAGE,), 1,
     "the pad must be smaller than the kernel"),
    ("Pooling", "pooling_param { kernel_size: 2 pad_h: 1 }", (IMAGE,), 1,
     "has one of 'pad_h' and 'pad_w', expected both"),
    ("Pooling", "pooling_param { global_pooling: true stride: 2 }", (IMAGE,), 1, "goes with pad 0 and stride 1 only"),
    ("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 pad: 1 }", (IMAGE,), 1, "STOCHASTIC goes with pad 0"),
    ("Pooling", "pooling_param { pool: AVE kernel_size: 2 }", (IMAGE,), 2, "has 2 tops, expected 1 with AVE"),
    ("Pooling", "pooling_param { kernel_size: 2 }", ((2, 6, 5),), 1, "the input has 3 axes, expected 4"),
    ("Pooling", "pooling_param { kernel_size: 7 }", (IMAGE,), 1, "kernel 7 does not fit the input 5, padded by 0"),
    ("Pooling", "pooling_param { pool: MIN kernel_size: 7 }", (IMAGE,), 1,
     "'pool' is MIN, expected one of MAX, AVE, STOC"),
    ("InnerProduct", "inner_product_param { axis: 1 }", (IMAGE,), 1, "parameter 'num_output' is missing"),
    ("InnerProduct", "inner_product_param { num_output: 0 }", (IMAGE,), 1, "'num_output' is 0, expected at least 1"),
    ("LRN", "lrn_param { local_size: 4 }", (IMAGE,), 1, "'local_size' is 4, expected an odd number"),
    ("Scale", "scale_param { axis: 3 num_axes: 2 }", (IMAGE,), 1, "num_axes 2 from axis 3 runs past the 4 axes"),
    ("Bias", "bias_param { axis: 1 }", (IMAGE, (5, 5)), 1,
     "bottom 1 is 5 x 5, which does not fit 2 x 6 x 5 x 5 at axis 1"),
    ("Eltwise", "eltwise_param { coeff: 1 }", (IMAGE, IMAGE), 1, "1 coefficients for 2 bottoms"),
    ("Eltwise", "eltwise_param { operation: PROD coeff: 1 coeff: 2 }", (IMAGE, IMAGE), 1, "go with SUM, not PROD"),
    ("Concat", "concat_param { axis: 1 concat_dim: 1 }", (IMAGE,), 1, "has both 'axis' and 'concat_dim'"),
    ("Concat", "", (IMAGE, (2, 6, 5, 4)), 1, "bottom 1 is 2 x 6 x 5 x 4, which does not join 2 x 6 x 5 x 5 at axis 1"),
    ("Softmax", "softmax_param { axis: -5 }", (IMAGE,), 1, "axis -5 is outside the 4 axes of the input"),
    ("Dropout", "dropout_param { dropout_ratio: 1 }", (IMAGE,), 1, "'dropout_ratio' is 1, expected 0 to below 1"),
    ("PReLU", "", ((6,),), 1, "the input has 1 axes, expected at least 2"),
    ("Clip", "clip_param { min: 0 }", (IMAGE,), 1, "parameter 'max' is missing"),
    ("Exp", "exp_param { base: 0 }", (IMAGE,), 1, "'base' is 0, expected a positive number, or -1 for e"),
    ("Log", "log_param { base: 1 }", (IMAGE,), 1, "'base' is 1, to which there is no logarithm"),
    ("Embed", "embed_param { num_output: 2 }", ((3,),), 1, "parameter 'input_dim' is missing"),
    ("Embed", "embed_param { num_output: 2 input_dim: 0 }", ((3,),), 1, "'input_dim' is 0, expected at least 1"),
    ("MVN", "", ((1, 2, 3, 4, 5),), 1, "the input has 5 axes, expected at most 4"),
    ("ArgMax", "argmax_param { top_k: 7 axis: 1 }", (IMAGE,), 1, "top_k 7 of 6 values"),
    ("ArgMax", "argmax_param { top_k: 0 }", (IMAGE,), 1, "'top_k' is 0, expected at least 1"),
    ("Reduction", "reduction_param { operation: MAX }", (IMAGE,), 1, "'operation' is MAX, expected one of SUM, ASUM"),
    ("Reduction", "reduction_param { operation: 0 }", (IMAGE,), 1, "'operation' is 0, expected one of SUM, ASUM"),
    ("Reduction", "reduction_param { axis: 4 }", (IMAGE,), 1, "axis 4 is outside the 4 axes of the input"),
    ("Tile", "tile_param { axis: 1 }", (IMAGE,), 1, "parameter 'tiles' is missing"),
    ("Tile", "tile_param { tiles: 0 }", (IMAGE,), 1, "'tiles' is 0, expected at least 1"),
    ("BatchReindex", "", (IMAGE, (2, 2)), 1, "bottom 1 has 2 axes, expected 1"),
    ("Filter", "", (IMAGE, ()), 1, "the selector is scalar, expected one number per sample"),
    ("Filter", "", ((), (2,)), 1, "bottom 0 is scalar, expected 2 samples as the selector"),
    ("Convolution", "convolution_param { num_output: 4294967296 kernel_size: 1 }", (IMAGE,), 1,
     "'num_output' is 4294967296, expected a whole number of 32 bits"),
    ("ReLU", "relu_param { negative_slope: true }", (IMAGE,), 1, "'negative_slope' is True, expected float"),
    ("Pooling", f"pooling_param {{ pool: {'A' * 900} }}", (IMAGE,), 1, r"'pool' is A{57}\.\.\., expected one of"),
    ("InnerProduct", "inner_product_param { num_output: 2147483647 }", (IMAGE,), 1,
     "blob 'weight' would be 2147483647 x 150"),
    ("Tile", "tile_param { tiles: 2147483647 }", (IMAGE,), 1, "top 'out0' would be 2 x 12884901882 x 5 x 5 for inputs"),
    ("Tile", "tile_param { tiles: 2147483647 }", ((2, 6, 0, 5),), 1, "top 'out0' would be 2 x 12884901882 x 0 x 5"),
    ("Im2col", "convolution_param { kernel_size: 60000 pad: 60000 }", (IMAGE,), 1,
     "top 'out0' would be 2 x 21600000000"),
    ("Im2col", "convolution_param { kernel_size: 1 }", ((2, 0, 5, 5),), 1, "the input has no channels"),
    ("Crop", "crop_param { offset: -1 }", (IMAGE, (2, 6, 4, 4)), 1, "axis 2: 4 from -1 on is not within 5"),
    ("Concat", "", ((1,) * 33,), 1, "input 'in0' would be"),
    ("Parameter", "parameter_param { shape { dim: -1 } }", (), 1, r"shape \(-1,\) is not a list of extents"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body", "shapes", "tops", "message"), CASES)
def test_is_refused(kind: str, body: str, shapes: tuple[tuple[int, ...], ...], tops: int, message: str) -> None:
    with pytest.raises(BridgeError, match=message) as caught:
        assemble(None, prototxt.parse(LayerCase(kind, body, shapes, tops=tops).prototxt)).infer()
    assert str(caught.value.args[0]).count("\n") == 0
    assert f"layer 'l' ({kind})" in str(caught.value.args[0]) or message.startswith("input")


def test_a_blob_has_a_limit(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        LayerCase("Tile", "tile_param { tiles: 2147483647 }", (IMAGE,)).net().infer()
    assert caught.value.hint == "a blob has at most 32 axes and 2,147,483,647 values"


def test_an_unfolding_with_too_large_windows_is_refused(tmp_path: Path) -> None:
    net = LayerCase("Im2col", "convolution_param { kernel_size: 2000 pad: 2000 stride: 2000 }", ((1, 1, 5, 5),)).net()
    with pytest.raises(UnsupportedLayerError, match="kernel 2000 x 2000 is too large to be unfolded"):
        bridge.export_onnx(net, tmp_path / "net.onnx", check=False)


@pytest.mark.parametrize(("text", "value"), [("1e300", np.inf), ("-1e300", -np.inf), ("1" * 400, np.inf), ("0.1", 0.1)])
def test_numbers_are_float32(text: str, value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = LayerCase("ReLU", f"relu_param {{ negative_slope: {text} }}", (IMAGE,)).net()["l"]
        learned = LayerCase("Scale", f"param {{ lr_mult: {text} }}", (IMAGE,)).net()["l"]
        noise = LayerCase("DummyData", f"dummy_data_param {{ shape {{}} data_filler {{ value: {text} }} }}", ()).net()[
            "l"
        ]
    assert (layer.negative_slope, learned.params[0].lr_mult, noise.values) == (np.float32(value),) * 2 + (
        (np.float32(value),),
    )


def test_of_a_repeated_kernel_size_the_last_counts() -> None:
    """In a caffemodel; in a prototxt Caffe refuses it."""
    text = 'name: "l" type: "Pooling" pooling_param { kernel_size: 3 kernel_size: 2 kernel_size: 5 }'
    definition = prototxt.parse(text + ' bottom: "x" top: "y"')
    assert build_layer(definition).kernel_size == (5, 5)
    with pytest.raises(FormatError, match=r"layer 'l': 'pooling_param.kernel_size' is given 3 times, expected once"):
        assemble(None, Message(layer=definition))


def test_a_net_whose_blobs_are_all_silenced_is_no_onnx_file(tmp_path: Path) -> None:
    net = LayerCase("Silence", "", (IMAGE,), tops=0).net()
    with pytest.raises(ModelError, match="the net has no outputs"):
        bridge.export_onnx(net, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


TRAIN_ONLY = 'layer { name: "l" type: "ReLU" bottom: "x" top: "y" include { phase: TRAIN } }'


@pytest.mark.parametrize(
    ("text", "reason", "notes"),
    [
        ('name: "bare"', "the net has no layers for phase TEST", ["the net has no layers for phase TEST"]),
        (
            TRAIN_ONLY,
            "the net has no layers for phase TEST",
            ["the net has no layers for phase TEST: its 1 are for others"],
        ),
        (
            'layer { name: "d" type: "Data" top: "y" top: "label" } layer { name: "s" type: "Silence" bottom: "y" }',
            "each of the net's layers serves training only",
            [],
        ),
    ],
)
def test_where_there_is_nothing_to_export_the_reason_is_told(
    text: str, reason: str, notes: list[str], tmp_path: Path
) -> None:
    (tmp_path / "net.prototxt").write_text(text)
    net = bridge.load(tmp_path / "net.prototxt")
    assert list(net.notes) == notes
    with pytest.raises(ModelError, match=f"net.prototxt: there is nothing to export: {reason}"):
        bridge.export_onnx(net, tmp_path / "net.onnx")


def test_a_blob_without_a_name_is_refused() -> None:
    net = assemble(None, prototxt.parse('layer { name: "l" type: "ReLU" bottom: "" top: "" }'))
    with pytest.raises(UnsupportedLayerError, match="has a bottom or top without a name"):
        net.infer({"": (1, 2)})


def test_a_blob_is_not_read_before_it_is_declared() -> None:
    relu = 'layer { name: "l" type: "ReLU" bottom: "x" top: "y" }'
    text = relu + 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 } } }'
    with pytest.raises(ModelError, match=r"layer 'l' \(ReLU\): reads blob 'x', which only a later layer declares"):
        assemble(None, prototxt.parse(text)).infer()
    assert assemble(None, prototxt.parse(relu)).infer({"x": (3,)}) == [((3,),)]


def test_a_blob_that_is_computed_cannot_be_declared() -> None:
    text = LayerCase("ReLU", "", (IMAGE,)).prototxt
    text += 'layer { name: "in" type: "Input" top: "out0" input_param { shape { dim: 2 } } }'
    with pytest.raises(FormatError, match=r"'in' \(Input\): writes blob 'out0', which layer 'l' \(ReLU\) writes too"):
        assemble(None, prototxt.parse(text))


def test_a_layer_is_named_once_whatever_its_class_is_called() -> None:
    net = LayerCase("DepthwiseConvolution", "convolution_param { num_output: 0 }", (IMAGE,)).net()
    with pytest.raises(UnsupportedLayerError) as caught:
        net.infer()
    assert caught.value.args[0] == "layer 'l' (DepthwiseConvolution): parameter 'num_output' is 0, expected at least 1"
