"""Errors have fields, and their text is made of the fields in one place."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from bridge import errors
from bridge.errors import BridgeError, FormatError, ModelError, UsageError

LEAVES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BridgeError)]


def test_the_text_is_made_of_the_fields() -> None:
    error = ModelError(
        "parameter 'pad'",
        where="net.prototxt",
        subject="layer 'conv1' (Convolution)",
        found="-1",
        expected="at least 0",
        hint="leave it out",
        rule="pad",
    )
    line = "net.prototxt: layer 'conv1' (Convolution): parameter 'pad' is -1, expected at least 0"
    assert error.text == line
    assert error.args == (line,)
    assert error.reason == "parameter 'pad' is -1, expected at least 0"
    assert str(error) == f"{line}\n  hint: leave it out"
    assert error.rule == "pad"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "holds no weights"),
        ({"where": "a.caffemodel"}, "a.caffemodel: holds no weights"),
        ({"subject": "layer 'x' (ReLU)"}, "layer 'x' (ReLU): holds no weights"),
        ({"expected": "some"}, "holds no weights, expected some"),
    ],
)
def test_what_is_not_known_is_left_out(fields: dict[str, str], text: str) -> None:
    assert UsageError("holds no weights", **fields).text == text


def test_an_error_learns_its_place_and_keeps_what_it_knows() -> None:
    inner = ModelError("has no blobs", subject="layer 'a' (Scale)", hint="give some", rule="blobs")
    outer = inner.at(where="b.prototxt", subject="another layer")
    assert type(outer) is ModelError
    assert outer.text == "b.prototxt: layer 'a' (Scale): has no blobs"
    assert (outer.hint, outer.rule) == ("give some", "blobs")
    assert inner.where == ""


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_leaf_is_copied_and_pickled_with_its_fields(kind: type[BridgeError]) -> None:
    error = kind("is a folder", where="data", expected="a file", hint="name a file", rule="kind")
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert (twin.where, twin.expected, twin.rule) == ("data", "a file", "kind")


def test_every_leaf_is_a_builtin_too_and_is_drawn_in_the_docstring() -> None:
    drawing = str(errors.__doc__)
    for kind in LEAVES:
        assert kind.__name__ in drawing
        if kind not in (BridgeError, errors.DifferenceError):
            builtin = kind.__bases__[1]
            assert builtin.__module__ == "builtins", kind
            assert f"{kind.__name__} ({builtin.__name__})" in drawing
    assert issubclass(FormatError, ValueError)
