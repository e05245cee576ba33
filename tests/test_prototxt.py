"""Text format: read without a schema, written so that Caffe and we read it back."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from bridge.caffe_files import prototxt
from bridge.caffe_files.proto import caffe_pb2
from bridge.errors import FormatError, MissingFileError
from bridge.schema.message import Message, Symbol
from tests.conftest import FIXTURES, ZOO, missing
from tests.strategies import files as strategies


@given(strategies.messages())
def test_parse_undoes_format(message: Message) -> None:
    assert prototxt.parse(prototxt.format(message)) == message


@given(st.text(st.sampled_from("ab{}<>[]:;,#\"'\\\n .-+0179xef"), max_size=40) | st.text())
def test_any_text_ends_in_a_message_or_an_error(text: str) -> None:
    with contextlib.suppress(FormatError):
        prototxt.parse(text)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(FIXTURES.rglob("*.prototxt")) if "field" not in path.parts],
    ids=lambda path: path.parent.name,
)
def test_fixture_parses_as_protobuf_does(path: Path) -> None:
    message = prototxt.parse_file(path)
    again = text_format.Parse(prototxt.format(message), caffe_pb2.NetParameter(), allow_unknown_field=True)
    assert again == text_format.Parse(path.read_text(), caffe_pb2.NetParameter(), allow_unknown_field=True)
    assert len(message)


@pytest.mark.zoo
def test_zoo_parses() -> None:
    paths = sorted(ZOO.rglob("*.prototxt"))
    if not paths:
        missing("zoo", f"no models in {ZOO} (set BRIDGE_ZOO)")
    for path in paths:
        message = prototxt.parse_file(path)
        assert message.messages("layer") or message.messages("layers"), path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1", Message(a=1)),
        ("a: -0x1F", Message(a=-31)),
        ("a: 010", Message(a=8)),
        ("a: 1.5f b: .5 c: 1e-3 d: -inf", Message(a=1.5, b=0.5, c=1e-3, d=float("-inf"))),
        ("a: true b: false c: MAX", Message(a=True, b=False, c=Symbol("MAX"))),
        ("a { b: 1 } a < b: 2 >", Message(a=[Message(b=1), Message(b=2)])),
        ("a: { b: 1 };", Message(a=Message(b=1))),
        ("a: [1, 2, 3] b: 4,", Message(a=[1, 2, 3], b=4)),
        ('a: "x" "y"\n"z"', Message(a="xyz")),
        (r"""a: "\"\'\\\n\t" """, Message(a="\"'\\\n\t")),
        (r'a: "\xe4\xb8\xad" b: "\344\270\255"', Message(a="中", b="中")),
        ("a: 'it\"s' # comment } {\n b: 2", Message(a='it"s', b=2)),
        ("\ufeffa: 1", Message(a=1)),
        ('152: 1 999 { 3: "\\303\\251" }', Message(**{"152": 1, "999": Message(**{"3": "é".encode()})})),
        ("", Message()),
    ],
)
def test_text(text: str, expected: Message) -> None:
    assert prototxt.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ("a: {", "net:1:5", "the end of the file"),
        ("a {\n  b: 1\n}\n}", "net:4:1", "'}'"),
        ("a 1", "net:1:3", "'1'"),
        ("layer {\n  name: \n}", "net:3:1", "'}'"),
        ('a: "open', "net:1:4", "'\"'"),
        ("a: 1\n\x00", "net:2:1", "'\\x00'"),
        ("a: [1, ", "net:1:8", "the end of the file"),
        ("a: {" * 100, "net:1:", "64"),
        ("a: " + "9" * 5000, "net:1:4", "'99"),
    ],
)
def test_error_says_line_and_column(text: str, where: str, found: str) -> None:
    with pytest.raises(FormatError) as error:
        prototxt.parse(text, "net")
    assert where in str(error.value)
    assert found in str(error.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"gone\.prototxt"):
        prototxt.parse_file(tmp_path / "gone.prototxt")


def test_name_that_is_not_utf8_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old.prototxt").write_bytes(b'name: "caf\xe9"')
    assert prototxt.parse_file(tmp_path / "old.prototxt").text("name") == "caf\udce9"


def test_a_binary_file_in_its_place_is_named(tmp_path: Path) -> None:
    path = tmp_path / "deploy.prototxt"
    path.write_bytes(b"\n\x0eFashionAlexNet")
    with pytest.raises(FormatError) as error:
        prototxt.parse_file(path)
    assert error.value.hint == "the file is no text; are prototxt and weights in the wrong order?"
