"""The ``param_str`` of a layer that is written in Python."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bridge.layers.base import Params
from bridge.schema.message import Value

_ENTRY = re.compile(r"""['"]?(\w+)['"]?\s*:\s*(?:!!python/tuple\s*)?(\[[^\]]*\]|\([^)]*\)|[-+\w.]+)""")

_LONGEST = 4000
"""A longer text is refused: one without colons or brackets takes time in proportion to its length squared."""


def read_param_str(p: Params, names: Mapping[str, str]) -> None:
    """Put the numbers of a ``param_str``, YAML or JSON of one level, where a field of that name would be.

    Args:
        p: The layer's parameters, which get the numbers.
        names: A name in the text -> the field.

    Raises:
        ModelError: It has something else than names and numbers, or another name.
    """
    text = p.other("python_param").read("param_str", str, "")
    if len(text) > _LONGEST:
        raise p.fail(f"param_str has {len(text)} characters", expected=f"at most {_LONGEST}")
    p.message = p.message.copy()
    for name, value in _ENTRY.findall(text):
        if name not in names:
            raise p.fail(f"param_str has '{name}'", expected=f"one of {', '.join(names)}")
        try:
            p.message.set(names[name], *(_number(n) for n in re.split(r"[\s,]+", value.strip("[]() ")) if n))
        except ValueError:
            raise p.fail(f"param_str has {name} {value}", expected="numbers") from None
    if _ENTRY.sub("", text).strip("{}, \n\t\r"):
        raise p.fail(f"param_str {text[:60]!r} is not a list of names and numbers")


def _number(text: str) -> Value:
    return float(text) if re.search("[.e]", text) else int(text)
