"""Who writes and who reads each value of a net, and how a layer is changed."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.caffe_files import prototxt
from bridge.caffe_files.assemble import assemble
from bridge.errors import ModelError, UsageError
from bridge.layers import build_layer
from bridge.schema import Blob, Blobs, Net, RawLayer, RawNet
from bridge.schema.flow import BlobValue, Stretch
from bridge.schema.message import Message

IN_PLACE = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "relu" type: "ReLU" bottom: "x" top: "x" }
layer { name: "split" type: "Split" bottom: "x" top: "a" top: "b" }
layer { name: "t" type: "TanH" bottom: "a" top: "t" }
layer { name: "sum" type: "Eltwise" bottom: "t" bottom: "b" bottom: "extra" top: "y" }
"""


def net(text: str = IN_PLACE) -> Net:
    return assemble(None, prototxt.parse(text))


def test_values_in_place_are_told_apart() -> None:
    flow = net().flow
    assert flow.reads[1] == (BlobValue(0, 0),)
    assert flow.reads[2] == (BlobValue(1, 0),)
    assert [flow.name(value) for value in flow.reads[4]] == ["t", "b", "extra"]
    assert flow.last["x"] == BlobValue(1, 0)
    assert not flow.final(BlobValue(0, 0))
    assert flow.final(BlobValue(1, 0))


def test_inputs_are_what_is_declared_and_what_nobody_writes() -> None:
    flow = net().flow
    assert flow.inputs == {"x": (2, 3), "extra": None}
    assert flow.outputs == ("y",)
    assert flow.fed(BlobValue(0, 0)) == BlobValue(-1, 0)
    assert flow.fed_reads()[4] == (BlobValue(3, 0), BlobValue(2, 1), BlobValue(-1, 1))


def test_readers_and_ancestors_are_found_through_splits() -> None:
    flow = net().flow
    assert flow.readers(BlobValue(1, 0)) == [3, 4]
    assert flow.behind_splits(BlobValue(2, 1)) == BlobValue(1, 0)
    assert flow.origins([BlobValue(3, 0)]) == {BlobValue(0, 0)}
    assert BlobValue(2, 0) in flow.ancestry([BlobValue(3, 0)])
    assert flow.learned() == [False] * 5


def test_shapes_are_inferred_once_and_can_be_stretched() -> None:
    made = net()
    assert made.flow is made.flow
    assert made.flow.final_shapes({"extra": (2, 3)})["y"] == (2, 3)
    with pytest.raises(ModelError, match="bottom 1 is 2 x 3, expected 3 x 3"):
        made.flow.infer({"extra": (2, 3)}, stretch=Stretch(3, 0, 1))
    with pytest.raises(ModelError, match=r"layer 'sum' \(Eltwise\): reads blob 'extra', which no layer writes"):
        made.flow.infer()


def test_a_changed_layer_has_a_definition_that_says_so() -> None:
    definition = prototxt.parse(
        'name: "fc" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 4 bias_term: false }'
    )
    layer = build_layer(definition, [Blob.of(np.ones((4, 3), np.float32))])
    changed = layer.changed(name="head", bottoms=["a"], tops=["b"], blobs=Blobs(), num_output=2)
    again = build_layer(changed.definition)
    for made in (changed, again):
        assert (made.name, made.bottoms, made.tops, made.outputs) == ("head", ("a",), ("b",), 2)
    assert again.attributes() == changed.attributes()
    assert layer.outputs == 4
    assert layer.definition.text("name") == "fc"
    assert layer.changed(num_output=4).blobs.blob("weight") is layer.blobs.blob("weight")
    with pytest.raises(ModelError, match="parameter 'num_output' is 0, expected at least 1"):
        layer.changed(num_output=0)
    unknown = build_layer(prototxt.parse('name: "u" type: "Unheard" bottom: "x" top: "y"'))
    assert unknown.changed(bottoms=["z"]).definition.text("bottom") == "z"
    with pytest.raises(UsageError, match="its parameters cannot be changed"):
        unknown.changed(num_output=1)


@pytest.mark.parametrize(("features", "hint"), [(4 * 9, "data=1,2,6,6"), (4 * 12, "data=1,2,HEIGHT,WIDTH")])
def test_the_shape_in_a_hint_fits_the_weights(features: int, hint: str) -> None:
    """A pooled image of 3 x 3 is one of 6 x 6 or 5 x 5; none that is square has 12 places."""
    head = 'layer { name: "fc" type: "InnerProduct" bottom: "p" top: "fc" inner_product_param { num_output: 1 } }'
    text = (
        'layer { name: "data" type: "Input" top: "data" }'
        'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4'
        " kernel_size: 1 } }"
        'layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { kernel_size: 2 stride: 2 } }' + head
    )
    weights = {"c": [(4, 2, 1, 1), (4,)], "fc": [(1, features), (1,)]}
    raw = RawNet(
        "n",
        tuple(
            RawLayer(name, "", Message(), tuple(Blob.of(np.ones(shape, np.float32)) for shape in shapes))
            for name, shapes in weights.items()
        ),
    )
    with pytest.raises(ModelError) as caught:
        assemble(raw, prototxt.parse(text)).infer()
    assert caught.value.hint == f"give it with --input {hint}"
