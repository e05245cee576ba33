"""Nets of every generation become what Caffe's own upgrade makes of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.caffe_files import upgrade
from bridge.caffe_files.proto import schema
from bridge.caffe_files.prototxt import parse
from bridge.caffe_files.upgrade import upgrade_net
from bridge.errors import FormatError
from bridge.schema.message import Message
from tests import encode
from tests.strategies import files as strategies


def layers(text: str) -> list[Message]:
    return upgrade_net(parse(text, "net.prototxt"))[1]


def test_current_net_stays_as_it_is() -> None:
    text = 'name: "n" state { phase: TEST } layer { name: "a" type: "ReLU" zoo_param { x: 1 } }'
    rest, found = upgrade_net(parse(text))
    assert rest == parse('name: "n" state { phase: TEST }')
    assert found == [parse('name: "a" type: "ReLU" zoo_param { x: 1 }')]


def test_v1() -> None:
    text = """layers {
      name: "c" type: CONVOLUTION bottom: "x" top: "y" include { phase: TRAIN } loss_weight: 2
      param: "w" param: "b" blob_share_mode: PERMISSIVE blobs_lr: 1 blobs_lr: 2 weight_decay: 3
      convolution_param { num_output: 4 } }"""
    expected = """name: "c" type: "Convolution" bottom: "x" top: "y" include { phase: TRAIN } loss_weight: 2
      param { name: "w" share_mode: PERMISSIVE lr_mult: 1 decay_mult: 3 } param { name: "b" lr_mult: 2 }
      convolution_param { num_output: 4 }"""
    assert layers(text) == [parse(expected)]


def test_v1_types_are_all_known_by_name_and_number() -> None:
    symbols = schema("V1LayerParameter").by_name["type"].symbols
    assert len(symbols) == 40
    assert set(upgrade._V1_TYPES) == set(symbols.values())
    for number, name in symbols.items():
        by_name, by_number = layers(f"layers {{ type: {name} }} layers {{ type: {number} }}")
        assert by_name == by_number
        assert by_name.text("type") == upgrade._V1_TYPES[name]


@pytest.mark.parametrize(
    ("old", "new"),
    [("REVERSE", "Reverse"), ("SEG_ACCURACY", "SegAccuracy"), ("INTERP", "Interp"), ("BN", "BN"), ("RELU6", "ReLU6"),
     ("ROI_POOLING", "ROIPooling"), ("99", "99"), ("'CROP'", "CROP")],
)  # fmt: skip
def test_v1_type_of_a_fork_has_its_v2_name(old: str, new: str) -> None:
    assert [layer.text("type") for layer in layers(f"layers {{ type: {old} }}")] == [new]


def test_v0_types_are_all_known() -> None:
    for old, name in upgrade._V0_TYPES.items():
        (layer,) = layers(f'layers {{ layer {{ name: "l" type: "{old}" }} }}')
        assert layer.text("type") == upgrade._V1_TYPES[name]


def test_v0() -> None:
    text = """
      layers { layer { name: "d" type: "data" source: "s" meanfile: "m" batchsize: 2 cropsize: 3 mirror: true }
               top: "data" }
      layers { layer { name: "c" type: "conv" num_output: 4 biasterm: false kernelsize: 5 stride: 2 group: 2
                       weight_filler { std: 1 } blobs_lr: 1 blobs_lr: 2 weight_decay: 0 } bottom: "data" top: "c" }
      layers { layer { name: "p" type: "pool" pool: AVE kernelsize: 3 } bottom: "c" top: "p" }
      layers { layer { name: "n" type: "lrn" local_size: 3 alpha: 0.5 beta: 0.25 } bottom: "p" top: "n" }
      layers { layer { name: "o" type: "dropout" dropout_ratio: 0.25 } bottom: "n" top: "n" }"""
    expected = """
      layer { name: "d" type: "Data" top: "data" data_param { source: "s" batch_size: 2 }
              transform_param { mean_file: "m" crop_size: 3 mirror: true } }
      layer { name: "c" type: "Convolution" bottom: "data" top: "c"
              param { lr_mult: 1 decay_mult: 0 } param { lr_mult: 2 }
              convolution_param { num_output: 4 bias_term: false kernel_size: 5 stride: 2 group: 2
                                  weight_filler { std: 1 } } }
      layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: AVE kernel_size: 3 } }
      layer { name: "n" type: "LRN" bottom: "p" top: "n" lrn_param { local_size: 3 alpha: 0.5 beta: 0.25 } }
      layer { name: "o" type: "Dropout" bottom: "n" top: "n" dropout_param { dropout_ratio: 0.25 } }"""
    assert layers(text) == layers(expected)


def test_v0_field_that_does_not_go_with_the_type_is_kept() -> None:
    (layer,) = layers('layers { layer { name: "r" type: "relu" num_output: 3 } }')
    assert layer == parse('name: "r" type: "ReLU" num_output: 3')


def padded(consumer: str, padding: str = 'bottom: "x" top: "pad"') -> str:
    return f"""layers {{ layer {{ name: "x" type: "data" }} top: "x" }}
      layers {{ layer {{ name: "pad" type: "padding" pad: 2 }} {padding} }} {consumer}"""


def test_padding_goes_into_the_next_layers() -> None:
    text = padded("""
      layers { layer { name: "c" type: "conv" pad: 7 } bottom: "pad" top: "c" }
      layers { layer { name: "p" type: "pool" } bottom: "pad" top: "p" }""")
    _, conv, pool = layers(text)
    assert conv == parse('name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { pad: 2 }')
    assert pool == parse('name: "p" type: "Pooling" bottom: "x" top: "p" pooling_param { pad: 2 }')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (padded('layers { layer { name: "r" type: "relu" } bottom: "pad" }'), "layer 'r' (relu): takes a padding"),
        (padded('layers { layer { name: "c" type: "conv" } bottom: "pad" bottom: "x" }'), "layer 'c' (conv): has 2"),
        (padded("", 'top: "pad"'), "layer 'pad' (padding): has 0 bottoms"),
        (padded("", 'bottom: "x"'), "layer 'pad' (padding): has 0 tops"),
        ("layer: 5", "'layer' holds a plain value"),
        ('input: "a" input_dim: 1', "1 input_dim for 1 inputs, expected 4"),
        ('input: "a" input: "b" input: "c" input_shape { } input_shape { }', "2 input_shape for 3 inputs"),
    ],
)  # fmt: skip
def test_what_is_no_net_is_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError) as error:
        layers(text)
    assert f"net.prototxt: {message}" in str(error.value)


@pytest.mark.parametrize("kind", ["DATA", "IMAGE_DATA", "WINDOW_DATA"])
def test_transformations_move_out_of_data_layers(kind: str) -> None:
    param = f"{kind.lower()}_param"
    (layer,) = layers(f"layers {{ type: {kind} {param} {{ batch_size: 2 scale: 0.5 crop_size: 3 mirror: true }} }}")
    assert layer.message(param) == parse("batch_size: 2")
    assert layer.message("transform_param") == parse("scale: 0.5 crop_size: 3 mirror: true")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('input: "a" input_shape { dim: 1 dim: 2 }', "input_param { shape { dim: 1 dim: 2 } }"),
        ('input: "a" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 4',
         "input_param { shape { dim: 1 dim: 2 dim: 3 dim: 4 } }"),
        ('input: "a"', ""),
    ],
)  # fmt: skip
def test_inputs_of_the_net_become_a_layer(text: str, expected: str) -> None:
    rest, found = upgrade_net(parse(f'{text} name: "n" layer {{ name: "l" }}'))
    assert rest == parse('name: "n"')
    assert found == [parse(f'name: "input" type: "Input" top: "a" {expected}'), parse('name: "l"')]


def test_several_inputs_share_the_layer() -> None:
    dims = " ".join(f"input_dim: {n}" for n in range(8))
    (layer,) = layers(f'input: "a" input: "b" {dims}')
    assert layer.all("top") == ["a", "b"]
    assert [shape.all("dim") for shape in layer.message("input_param").messages("shape")] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]


def test_batch_norm_with_three_params_is_frozen() -> None:
    params = 'param { name: "m" lr_mult: 1 } param { } param { lr_mult: 2 }'
    frozen, other = layers(f'layer {{ type: "BatchNorm" {params} }} layer {{ type: "Scale" {params} }}')
    assert all(param.get("lr_mult") == param.get("decay_mult") == 0 for param in frozen.messages("param"))
    assert frozen.messages("param")[0].text("name") == "m"
    assert other.messages("param")[2] == parse("lr_mult: 2")


@given(st.lists(strategies.definitions(), max_size=4), st.sampled_from(["V0", "V1", "V2"]))
def test_upgrade_undoes_downgrade(definitions: list[Message], generation: str) -> None:
    old = Message()
    for definition in definitions:
        if generation == "V0":
            outer, inner = encode.to_v0(definition)
            outer.add("layer", inner)
            old.add("layers", outer)
        else:
            old.add(
                "layers" if generation == "V1" else "layer",
                encode.to_v1(definition) if generation == "V1" else definition,
            )
    before = old.copy()
    assert upgrade_net(old)[1] == definitions
    assert old == before


# -- against the real Caffe --------------------------------------------------------------------

SCRIPT = """
import json, os, sys
os.environ["GLOG_minloglevel"] = "3"
import caffe
for line in sys.stdin:
    net = caffe.Net(json.loads(line), caffe.TEST)
    layers = [[name, layer.type] for name, layer in zip(net._layer_names, net.layers)]
    print(json.dumps([layers, {name: list(blob.data.shape) for name, blob in net.blobs.items()}]))
"""
NETS = {
    "v0": """input: "x" input_dim: 1 input_dim: 4 input_dim: 6 input_dim: 6
      layers { layer { name: "pad" type: "padding" pad: 2 } bottom: "x" top: "pad" }
      layers { layer { name: "c" type: "conv" num_output: 4 kernelsize: 3 group: 2 } bottom: "pad" top: "c" }
      layers { layer { name: "p" type: "pool" pool: AVE kernelsize: 3 stride: 2 pad: 1 } bottom: "c" top: "p" }
      layers { layer { name: "i" type: "innerproduct" num_output: 5 } bottom: "p" top: "i" }
      layers { layer { name: "s" type: "softmax" } bottom: "i" top: "s" }""",
    "v1": """input: "x" input_shape { dim: 2 dim: 4 dim: 6 dim: 6 }
      layers { name: "c" type: CONVOLUTION bottom: "x" top: "c" blobs_lr: 1 weight_decay: 0
               convolution_param { num_output: 3 kernel_size: 3 } }
      layers { name: "r" type: RELU bottom: "c" top: "c" }
      layers { name: "q" type: SLICE bottom: "c" top: "q0" top: "q1" slice_param { slice_dim: 1 slice_point: 1 } }""",
}  # fmt: skip


@pytest.mark.caffe
@pytest.mark.parametrize("name", NETS)
def test_caffe_makes_the_same_layers(tmp_path: Path, name: str) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(NETS[name])
    python = os.environ["BRIDGE_PYCAFFE_PYTHON"]
    run = subprocess.run(
        [python, "-c", SCRIPT], input=json.dumps(str(path)), capture_output=True, text=True, check=True
    )
    ours = [[layer.text("name"), layer.text("type")] for layer in layers(NETS[name])]
    theirs, _ = json.loads(run.stdout)
    assert [layer for layer in theirs if layer[1] != "Split"] == ours
