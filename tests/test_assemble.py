"""From what is stored, and a prototxt, to a net."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.caffe_files.assemble import assemble
from bridge.caffe_files.prototxt import parse
from bridge.schema import Blob, RawLayer, RawNet
from bridge.schema.message import Message
from tests.nets import make


def stored(name: str, *blobs: Blob, uncovered: str = "") -> RawLayer:
    return RawLayer(name, "Scale", Message(name=name, type="Scale"), blobs, uncovered)


def prototxt(*names: str) -> Message:
    return Message(layer=[Message(name=name, type="Scale", bottom="x", top="x") for name in names])


def test_of_several_stored_layers_the_last_with_blobs_counts() -> None:
    one, two = Blob.of(np.ones(1)), Blob.of(np.ones(2))
    raw = RawNet("n", (stored("a", uncovered="why"), stored("a", one), stored("a", two), stored("a")))
    assert assemble(raw, prototxt("a"))["a"].blobs.blob("gamma") is two
    raw = RawNet("n", (stored("a", uncovered="why"), stored("a", uncovered="not")))
    assert assemble(raw, prototxt("a"))["a"].uncovered == "why"


def test_many_layers_take_time_in_proportion() -> None:
    blob = Blob.of(np.ones(1))
    raw = RawNet("n", tuple(stored(f"layer{index}", blob) for index in range(20_000)))
    start = time.perf_counter()
    net = assemble(raw, prototxt(*(f"other{index}" for index in range(20_000))))
    assert time.perf_counter() - start < 20
    assert len(net.notes) == 20_000


def test_the_first_of_many_unused_layers_have_a_hint() -> None:
    raw = RawNet("n", tuple(stored(f"layer{index}", Blob.of(np.ones(1))) for index in range(50)))
    net = assemble(raw, prototxt(*(f"other{index}" for index in range(50))))
    assert "did you mean" in net.notes[0]
    assert "did you mean" not in net.notes[-1]


@pytest.mark.parametrize(
    ("fields", "unknown"),
    [
        ("relu_param { negative_slope: 0.1 engine: CAFFE }", None),
        ("relu_param { negative_slop: 0.1 }", "relu_param.negative_slop: 0.1"),
        ("relu_parm { negative_slope: 0.1 }", "relu_parm"),
        ("param { lr_mul: 2 }", "param.lr_mul: 2"),
        ("pooling_param { pad: 1 pool: AVE }", None),
        ("include { phase: TEST stages: 'a' }", "include.stages: 'a'"),
    ],
)
def test_a_parameter_that_no_caffe_knows_is_told(fields: str, unknown: str | None) -> None:
    kind = "PReLU" if fields.startswith("param ") else "ReLU"  # a layer without blobs has no param
    net = assemble(None, parse(f'layer {{ name: "r" type: "{kind}" bottom: "x" top: "y" {fields} }}'))
    told = f"layer 'r' ({kind}): '{unknown}' is in no known caffe.proto"
    assert list(net.notes) == ([told] if unknown else [])


SHOWN = """
layer  type         group  blob    shape          dtype
data   Input
c      Convolution  2      weight  4 x 1 x 3 x 3  float32
                           bias    4              float32
r      ReLU
<Net 'n': 3 layers, 40 values>
"""


def test_a_net_and_its_layers_are_shown_without_their_values() -> None:
    net = make(
        'name: "n" layer { name: "data" type: "Input" top: "data" input_param { shape { dim: [1, 2, 5, 5] } } }'
        'layer { name: "c" type: "Convolution" bottom: "data" top: "c" '
        "convolution_param { num_output: 4 kernel_size: 3 group: 2 } }"
        'layer { name: "r" type: "ReLU" bottom: "c" top: "c" }'
    )
    assert str(net) == SHOWN.strip("\n")
    assert repr(net) == "<Net 'n': 3 layers, 40 values>"
    assert repr([*net]) == (
        "[<Input 'data': -> data>, <Convolution 'c': data -> c; weight 4 x 1 x 3 x 3, bias 4>, <ReLU 'r': c -> c>]"
    )
    assert repr(assemble(None, prototxt("odd\x1b"))["odd\x1b"]) == r"<Scale 'odd\x1b': x -> x>"


def over(kind: str, more: str = "", inplace: str = "ReLU") -> tuple[str, ...]:
    """The notes about a net that works in place on what a layer of this type made of the data."""
    text = f"""
      layer {{ name: "in" type: "Input" top: "x" }}
      layer {{ name: "s" type: "{kind}" bottom: "x" top: "y" {more} }}
      layer {{ name: "i" type: "{inplace}" bottom: "y" top: "y" }}
      layer {{ name: "r" type: "Power" bottom: "x" top: "z" }}
    """
    return assemble(None, parse(text)).notes


@pytest.mark.parametrize("kind", ["Reshape", "Flatten", "Concat", "Slice"])
def test_tells_what_caffe_writes_over(kind: str) -> None:
    note = "layer 'r' (Power) takes blob 'x' as computed; in Caffe layer 'i' (ReLU) wrote over it, in place"
    assert over(kind) == (note,)


def test_tells_of_an_output_that_caffe_writes_over() -> None:
    (note,) = over("Split", 'top: "w"')[1:]
    assert note == "the net's output takes blob 'w' as computed; in Caffe layer 'i' (ReLU) wrote over it, in place"


def test_tells_of_nothing_else() -> None:
    assert not over("Tile")
    assert not over("Flatten", inplace="Dropout")
    assert not over("Concat", 'bottom: "x"')
    assert not assemble(None, parse('layer { name: "s" type: "Reshape" top: "y" }')).notes
    chain = 'layer { name: "a" type: "ReLU" bottom: "x" top: "x" }' * 3
    assert not assemble(None, parse(chain)).notes
    anew = """
      layer { name: "s" type: "Flatten" bottom: "x" top: "y" } layer { name: "i" type: "ReLU" bottom: "y" top: "y" }
      layer { name: "o" type: "Power" bottom: "y" top: "x" } layer { name: "r" type: "Power" bottom: "x" top: "z" }
    """
    assert not assemble(None, parse(anew)).notes


def test_weights_of_another_type_are_told(tmp_path: Path) -> None:
    """Two blobs fit no PReLU; the weights say which type they are for."""
    text = 'layer { name: "l" type: "%s" bottom: "x" top: "y" %s }'
    head = 'input: "x" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 3 '
    bridge.save(make(head + text % ("Scale", "scale_param { bias_term: true }")), tmp_path / "w.caffemodel")
    (tmp_path / "n.prototxt").write_text(head + text % ("PReLU", ""))
    net = bridge.load(tmp_path / "n.prototxt", tmp_path / "w.caffemodel")
    assert net["l"].reason().endswith("has 2 blobs, expected 1 (slope); they are stored for the type Scale")
