"""The wire format: what is right reads, and what is wrong says where."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from backends.wire import LONGEST_TEXT, FileBytes, Span, decode
from bridge.caffe_files import prototxt
from bridge.caffe_files.proto import caffe_pb2, dialects, forks_pb2, param_field, schema
from bridge.caffe_files.proto.encode import encode
from bridge.errors import FormatError
from bridge.schema.message import Message, Symbol
from tests.conftest import ROOT
from tests.encode import chunk, number, tag, varint
from tests.strategies import files as strategies


def span(data: bytes, name: str = "NetParameter") -> Span:
    return Span(FileBytes(data, "file"), 0, len(data), schema(name), name)


def fails(data: bytes, message: str, name: str = "NetParameter") -> None:
    with pytest.raises(FormatError) as error:
        decode(span(data, name))
    assert str(error.value.args[0]) == message


def test_fields_of_each_type() -> None:
    data = number(1, 300) + chunk(2, b"ab") + tag(3, 5) + b"1234" + tag(4, 1) + b"12345678" + tag(9, 3) + tag(9, 4)
    assert list(span(data).fields()) == [(1, 0, 300, 3), (2, 2, 5, 7), (3, 5, 8, 12), (4, 1, 13, 21), (9, 3, 22, 23)]


def test_values_under_one_tag_come_as_one_field() -> None:
    data = number(1, 1) + (tag(5, 5) + b"1234") * 1000 + (tag(6, 5) + b"1234") * 3 + number(7, 1)
    runs = [entry for entry in span(data).fields() if entry[1] == 5]
    assert runs == [(5, 5, 3, 2 + 5000), (6, 5, 5003, 5017)]


def test_values_under_a_tag_of_two_bytes_come_one_by_one() -> None:
    assert len(list(span((tag(20, 5) + b"1234") * 4).fields())) == 4


@given(st.integers(0, 2**64 - 1))
def test_varint(value: int) -> None:
    assert list(span(number(1, value)).fields()) == [(1, 0, value, len(number(1, value)))]


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"\xff" * 9 + b"\x01", 2**64 - 1),
        (b"\xff" * 9 + b"\x7f", 2**64 - 1),  # 70 bits, of which 64 count
        (b"\x80" * 9 + b"\x7e", 0),
        (b"\x85\x80\x00", 5),  # longer than need be
    ],
)
def test_bits_of_a_varint_beyond_the_64th_do_not_count(body: bytes, value: int) -> None:
    """Source: the encoding specification, which lets parsers drop them."""
    assert list(span(b"\x08" + body).fields()) == [(1, 0, value, 1 + len(body))]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x0a", "file: byte 0: NetParameter.name: length 1 runs 1 byte past the end of file"),
        (b"\x0a\x05net", "file: byte 0: NetParameter.name: length 5 runs 2 bytes past the end of file"),
        (number(5, 1) + b"\x0a\x80", "file: byte 2: NetParameter.name: length 2 runs 1 byte past the end of file"),
        (b"\x28" + b"\xff" * 11, "file: byte 0: NetParameter.force_backward: varint of more than 10 bytes"),
        (b"\x00\x00", "file: byte 0: NetParameter: field number 0, expected 1 to 536870911"),
        (varint(1 << 32), "file: byte 0: NetParameter: field number 536870912, expected 1 to 536870911"),
        (b"\x0e", "file: byte 0: NetParameter.name: wire type 6, expected 0 to 5"),
        (b"\x0c", "file: byte 0: NetParameter.name: end of a group that did not start"),
        (tag(9, 3), "file: byte 1: NetParameter: group 9 does not end"),
        (tag(9, 3) + tag(8, 4), "file: byte 1: NetParameter: end of group 8, which did not start"),
        (tag(9, 3) * 100, "file: byte 64: NetParameter: groups nested deeper than 64"),
        (tag(77, 5) + b"12", "file: byte 0: NetParameter.field 77: length 4 runs 2 bytes past the end of file"),
        (chunk(1, b"x" * (LONGEST_TEXT + 1)), "file: byte 4: NetParameter: name of 1048577 bytes, more than 1048576"),
        (
            chunk(8, chunk(1, b"\x01\x80")) + chunk(1, b"net"),
            "file: byte 5: NetParameter.input_shape[0]: length 2 runs 1 byte past the end of it",
        ),
    ],
)  # fmt: skip
def test_error_says_byte_and_field(data: bytes, message: str) -> None:
    fails(data, message)


def test_error_in_a_truncated_file_goes_as_deep_as_it_can() -> None:
    layer = chunk(1, b"conv") + chunk(7, chunk(7, chunk(1, b"\x02")) + chunk(5, b"12345678"))
    whole = chunk(100, chunk(1, b"data")) + chunk(100, layer)
    with pytest.raises(FormatError) as error:
        decode(span(whole[:-3]))
    path = "NetParameter.layer[1].blobs[0].data"
    assert error.value.args[0] == f"file: byte {len(whole) - 10}: {path}: length 8 runs 3 bytes past the end of file"
    assert "truncated" in error.value.hint


def test_small_file_cannot_have_many_fields() -> None:
    fails(number(5, 1) * 70_000, "file: byte 132164: NetParameter: more fields than a net can have")


def test_decodes_by_schema() -> None:
    text = """
      name: "l" type: "T" bottom: "a" bottom: "b" loss_weight: 0.1 loss_weight: 2 phase: TEST propagate_down: true
      param { lr_mult: 0 } param { name: "w" }
      convolution_param { num_output: 7 pad: 1 pad: 2 engine: CUDNN axis: -3 weight_filler { std: 1e-05 } }
    """
    data = text_format.Parse(text, caffe_pb2.LayerParameter()).SerializeToString()
    assert decode(span(data, "LayerParameter")) == prototxt.parse(text)


def test_packed_and_unpacked_are_the_same() -> None:
    packed = decode(span(chunk(3, b"\x01\x02") + chunk(6, b"\x03"), "ConvolutionParameter"))
    single = decode(span(number(3, 1) + number(3, 2) + number(6, 3), "ConvolutionParameter"))
    assert packed == single == Message(pad=[1, 2], stride=3)
    floats = np.array([0.5, 0.25], "<f4")
    assert decode(span(chunk(2, floats.tobytes()), "EltwiseParameter")) == Message(coeff=[0.5, 0.25])
    fails(
        chunk(2, b"12345"), "file: byte 2: EltwiseParameter.coeff: length 5 is not a multiple of 4", "EltwiseParameter"
    )


def test_unknown_fields_are_kept_under_their_numbers() -> None:
    data = number(99, (1 << 64) - 1) + chunk(98, b"\x00\xff") + tag(97, 5) + np.float32(0.1).tobytes() + number(1, 60)
    expected = Message()
    expected.merge(Message(**{"99": -1, "98": b"\x00\xff", "97": 0x3DCCCCCD, "1": 60}))
    assert decode(span(data, "InputParameter")) == expected


def test_enum_value_without_a_name_stays_a_number() -> None:
    assert decode(span(number(1, 9), "PoolingParameter")) == Message(pool=9)
    assert decode(span(number(1, 1), "PoolingParameter")) == Message(pool=Symbol("AVE"))


def test_text_that_is_not_utf8_stays_as_it_is() -> None:
    assert decode(span(chunk(1, b"caf\xe9"))).text("name") == "caf\udce9"


@given(st.floats(width=32))
def test_float_is_the_shortest_that_reads_back(value: float) -> None:
    data = tag(2, 5) + np.float32(value).tobytes()
    read = decode(span(data, "FillerParameter")).get("value")
    assert isinstance(read, float)
    assert np.float32(read) == np.float32(value) or (math.isnan(read) and math.isnan(value))


@given(strategies.definitions())
def test_decode_undoes_encode(definition: Message) -> None:
    def refuse(path: str) -> None:
        raise AssertionError(path)

    data = encode(definition, schema("LayerParameter").by_name, refuse)
    assert decode(span(data, "LayerParameter")) == definition
    assert caffe_pb2.LayerParameter.FromString(data).name == definition.text("name")


def test_encode_tells_what_it_leaves_out() -> None:
    text = 'name: "l" convolution_param { num_output: 1.5 pad: 2 blur: 3 }'
    text += " pooling_param { pool: MEDIAN } lrn_param: 4 zz: 1"
    dropped: list[str] = []
    data = encode(prototxt.parse(text), schema("LayerParameter").by_name, dropped.append)
    assert dropped == [
        "convolution_param.num_output",
        "convolution_param.blur",
        "pooling_param.pool",
        "lrn_param",
        "zz",
    ]
    kept = prototxt.parse('name: "l" convolution_param { pad: 2 } pooling_param { }')
    assert decode(span(data, "LayerParameter")) == kept


def test_encode_writes_unknown_numbers_back() -> None:
    data = number(99, 5) + chunk(98, b"\x00\xff") + tag(97, 5) + np.float32(0.1).tobytes()
    message = decode(span(data, "InputParameter"))
    assert encode(message, {}, lambda path: pytest.fail(path)) == data


@pytest.mark.parametrize("generated", [caffe_pb2, forks_pb2])
def test_generated_schema_is_what_the_proto_file_says(generated: Any) -> None:
    path = ROOT / "bridge" / "caffe_files" / "proto" / generated.DESCRIPTOR.name.rpartition("/")[2]
    lines = path.read_text().splitlines()
    stated = [line.split("[")[0].split()[-3::2] for line in lines if line.split()[:1] in (["optional"], ["repeated"])]
    found: list[list[str]] = []
    pending = list(generated.DESCRIPTOR.message_types_by_name.values())
    for message in pending:
        pending.extend(message.nested_types)
        found.extend([field.name, str(field.number)] for field in message.fields)
    assert sorted([name, number.rstrip(";")] for name, number in stated) == sorted(found)


@pytest.mark.parametrize("fork", dialects())
def test_dialect_names_no_number_twice(fork: str) -> None:
    pending = ["NetParameter", "LayerParameter", "V1LayerParameter"]
    for message in pending:
        fields = schema(message, (fork,)).by_number.values()
        assert len({field.name for field in fields}) == len(fields)
        assert all(
            schema(field.type, (fork,)).by_number or field.type.startswith("NetState") for field in fields if field.type
        )
        pending.extend({field.type for field in fields if field.type} - {*pending})


@pytest.mark.parametrize(
    ("number", "kind", "name"),
    [
        (143, "Input", "input_param"),
        (143, "Interp", "interp_param"),
        (137, "BN", "bn_param"),
        (137, "Embed", "embed_param"),
        (137, "Upsample", "upsample_param"),
        (148, "Clip", "clip_param"),
        (148, "Reorg", "reorg_param"),
        (149, "CropCenter", "crop_center_param"),
        (149, "Upsample", "upsample_param"),
        (164, "ShuffleChannel", "shuffle_channel_param"),
        (203, "PriorBox", "prior_box_param"),
        (204, "DetectionOutput", "detection_output_param"),
        (204, "Reverse", "reverse_param"),
    ],
)
def test_colliding_number_goes_with_the_layer_type(number: int, kind: str, name: str) -> None:
    field = param_field(tuple(dialects()), number, kind)
    assert field is not None
    assert field.name == name


@given(strategies.wire_data())
def test_any_bytes_end_in_a_message_or_an_error(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        decode(span(data))
