"""What Caffe refuses in a net's definition: blobs that two layers write, and counts that do not fit."""

from __future__ import annotations

import pytest

from bridge.caffe_files.assemble import assemble
from bridge.caffe_files.prototxt import parse
from bridge.errors import FormatError, ModelError
from bridge.schema import RawLayer, RawNet
from bridge.schema.message import Message

HEAD = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 dim: 6 dim: 6 } } }\n'


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        (
            'layer { name: "r" type: "ReLU" bottom: "x" top: "r" }\n'
            'layer { name: "q" type: "TanH" bottom: "x" top: "x" }',
            r"layer 'q' \(TanH\): works in place on blob 'x', which is read by layer 'r' \(ReLU\), too",
        ),
        (
            'layer { name: "e" type: "Eltwise" bottom: "x" bottom: "x" top: "x" }',
            r"works in place on blob 'x', which is read by itself once more, too",
        ),
    ],
)
def test_a_layer_in_place_is_its_bottoms_only_reader(layers: str, problem: str) -> None:
    """Caffe copies a value for each of its readers, so the second is in place on another blob: 'multiple sources'."""
    with pytest.raises(FormatError, match=problem):
        assemble(None, parse(HEAD + layers))


def test_readers_of_what_a_layer_in_place_wrote_may_be_many() -> None:
    reader = 'layer { name: "%s" type: "TanH" bottom: "x" top: "%s" }'
    text = 'layer { name: "q" type: "ReLU" bottom: "x" top: "x" }' + reader % ("a", "a") + reader % ("b", "b")
    assert assemble(None, parse(HEAD + text)).outputs == ("a", "b")


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        ('type: "Flatten" bottom: "x" top: "x"', "works in place on blob 'x', which its type does not"),
        ('type: "Reshape" bottom: "x" top: "x"', "works in place on blob 'x', which its type does not"),
        ('type: "Reverse" bottom: "x" top: "x"', "works in place on blob 'x', which its type does not"),
        ('type: "Split" bottom: "x" top: "x" top: "y"', "works in place on blob 'x', which its type does not"),
        ('type: "AbsVal" bottom: "x" top: "x"', "works in place on blob 'x', which its type does not"),
        ('type: "Input" bottom: "x" top: "y"', "has 1 bottoms, expected 0"),
        (
            'type: "ReLU" bottom: "x" top: "y" param { lr_mult: 1 }',
            "has 1 param, expected at most 0, one for each blob",
        ),
        (
            'type: "Convolution" bottom: "x" top: "y"'
            " convolution_param { num_output: 2 kernel_size: 1 bias_term: false }"
            " param { lr_mult: 1 } param { lr_mult: 2 }",
            "has 2 param, expected at most 1, one for each blob",
        ),
        ('type: "Concat" bottom: "x" bottom: "x" top: "y" propagate_down: true', "has 1 propagate_down"),
        ('type: "Slice" bottom: "x" top: "y" top: "z" loss_weight: 1', "has 1 loss_weight, expected none, or 2"),
        (
            'type: "Pooling" bottom: "x" top: "y" pooling_param { global_pooling: true kernel_size: 6 }',
            "has a kernel beside global_pooling, expected one of the two",
        ),
    ],
)
def test_what_caffe_checks_as_it_sets_a_layer_up(layer: str, problem: str) -> None:
    assert problem in assemble(None, parse(HEAD + f'layer {{ name: "l" {layer} }}'))["l"].reason()


def test_a_layer_in_place_keeps_its_blobs_shape() -> None:
    layer = 'layer { name: "p" type: "Pooling" bottom: "x" top: "x" pooling_param { kernel_size: 3 } }'
    with pytest.raises(
        ModelError, match="works in place on blob 'x' of 1 x 4 x 6 x 6, and would make it 1 x 4 x 4 x 4"
    ):
        assemble(None, parse(HEAD + layer)).infer()


def test_a_file_of_weights_alone_is_not_held_to_it() -> None:
    """Its wiring has Caffe's own copies in it, and another tool may have left them out."""
    names = ("ReLU", "r"), ("TanH", "x")
    layers = [Message(name=top, type=kind, bottom="x", top=top) for kind, top in names]
    raw = RawNet("n", tuple(RawLayer(layer.text("name"), layer.text("type"), layer) for layer in layers))
    assert len(assemble(raw)) == 2


def test_old_layers_with_new_types_are_refused() -> None:
    text = 'layers { name: "r" type: "ReLU" bottom: "x" top: "y" }'
    with pytest.raises(
        FormatError, match="'layers' with type: \"ReLU\", expected a name without quotation marks"
    ) as caught:
        assemble(None, parse(text))
    assert caught.value.hint == "write 'layer' in place of 'layers'"
