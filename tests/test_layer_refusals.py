"""Parameters, wiring and shapes that the real Caffe refuses are refused here too, in one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

import bridge
from bridge import prototxt
from bridge.assemble import assemble
from bridge.errors import BridgeError, ModelError
from tests.strategies import LayerCase

IMAGE = (2, 6, 5, 5)
CASES = [
    ("ReLU", "", (IMAGE, IMAGE), 1, "has 2 bottoms, expected 1"),
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
    ("Parameter", "parameter_param { shape { dim: -1 } }", (), 1, r"shape \(-1,\) is not a list of extents"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body", "shapes", "tops", "message"), CASES)
def test_is_refused(kind: str, body: str, shapes: tuple[tuple[int, ...], ...], tops: int, message: str) -> None:
    with pytest.raises(BridgeError, match=message) as caught:
        assemble(None, prototxt.parse(LayerCase(kind, body, shapes, tops=tops).prototxt)).infer()
    assert str(caught.value.args[0]).count("\n") == 0
    assert f"layer 'l' ({kind})" in str(caught.value.args[0])


def test_a_net_whose_blobs_are_all_silenced_is_no_onnx_file(tmp_path: Path) -> None:
    net = LayerCase("Silence", "", (IMAGE,), tops=0).net()
    with pytest.raises(ModelError, match="the net has no outputs"):
        bridge.export_onnx(net, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
