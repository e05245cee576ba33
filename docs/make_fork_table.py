"""Write docs/forks.md: what becomes of every field of every known caffe.proto. Run it after adding one, or a layer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bridge.caffe_files.fields import ANYWHERE, LAYERS, harmless, messages_of  # noqa: E402
from bridge.caffe_files.proto import Field, dialects, variants  # noqa: E402
from bridge.caffe_files.upgrade import RENAMED  # noqa: E402
from bridge.errors import BridgeError  # noqa: E402
from bridge.layers import REGISTRY, CaffeLayer  # noqa: E402
from bridge.layers.base import Params, parameters_of  # noqa: E402
from bridge.layers.reading import Watched  # noqa: E402
from bridge.schema.message import Message, Symbol, Value  # noqa: E402

PAGE = ROOT / "docs" / "forks.md"
READ, HARMLESS, REFUSED = "read", "harmless", "refused"
STOCK = "caffe.proto"
HEAD = """# Fields of the forks

Made by `docs/make_fork_table.py` from `bridge/caffe_files/proto/caffe.proto`, `forks.proto` and the layer types; a test
checks that it is current. Each line is a field of a layer's parameters, with its number and its default.

- *read*: the layer type computes with it.
- *harmless*: it bears on no result at test time; the reason stands behind it.
- *refused*: it may change what the layer computes, and nothing here computes that. `bridge verify` fails with it,
  `bridge export` and a chain refuse it, unless `--allow-unknown-fields` is given. A field that has its default value
  passes. Where it says *no such layer*, no layer type here has this message: the layer itself is named as unknown.

Converters for chips read files of the same forms: Kendryte's nncase those of `sequences` (`kendryte/caffe`),
Huawei's Atlas those of BVLC's caffe.proto, HiSilicon's NNIE those of `nnie`, as its users tell it: its mapper's own
file is not public.

Fields that stand in every layer and are harmless:
"""


class Line(NamedTuple):
    """A field of a parameter message, and what becomes of it.

    Attributes:
        parameter: The field of ``LayerParameter`` that the message is in.
        field: The field's name.
        forks: Who has it: fork -> the field as it has it.
        owners: The layer types that have the message.
        verdict: ``read``, ``harmless`` or ``refused``.
        reason: Why it is harmless.
    """

    parameter: str
    field: str
    forks: Mapping[str, Field]
    owners: tuple[str, ...]
    verdict: str
    reason: str


class _Lenient(Params):
    """Parameters in which nothing is missing, so that a type can be watched reading all that it reads."""

    def read(self, name: str, kind: Any, default: Any) -> Any:
        try:
            return super().read(name, kind, default)
        except BridgeError:
            self.message.set(name, 1)
            with contextlib.suppress(BridgeError):
                return super().read(name, kind, default)
            return default

    def of(self, message: Message) -> Params:
        return _Lenient(message, self._definition, self._enum_start)


def lines() -> Iterator[Line]:
    """Every field of every parameter message, in order of the messages' names."""
    for parameter, forks in sorted(variants("LayerParameter").items()):
        owners = [cls for cls in dict.fromkeys(REGISTRY.values()) if parameter in messages_of(cls)]
        names = tuple(sorted(name for name, cls in REGISTRY.items() if cls in owners))
        messages = {field.type for field in forks.values() if field.kind == "message"}
        fields: dict[str, dict[str, Field]] = {}
        for message in sorted(messages):
            for name, found in variants(message).items():
                fields.setdefault(name, {}).update(found)
        for name, found in sorted(fields.items()):
            if STOCK in found and STOCK not in forks:  # a message that is the same in every fork that has it
                found = {**dict.fromkeys(forks, found[STOCK]), **{k: v for k, v in found.items() if k != STOCK}}
            verdict, reason = evaluated(owners, parameter, name, found)
            yield Line(parameter, name, found, names, verdict, reason)


def evaluated(owners: list[type[CaffeLayer]], parameter: str, name: str, forks: Mapping[str, Field]) -> tuple[str, str]:
    """What becomes of a field, and why it is harmless; it is read if any of the types that have it reads it."""
    if not owners and parameter in LAYERS:
        return HARMLESS, LAYERS[parameter]
    if (parameter, name) in RENAMED or any(name in read_fields(cls, parameter) for cls in owners):
        return READ, ""
    reasons = [harmless(cls, (parameter, name)) for cls in owners]
    return (HARMLESS, reasons[0]) if reasons and all(reasons) else (REFUSED, "")


_READ_FIELDS: dict[tuple[type[CaffeLayer], str], set[str]] = {}


def read_fields(cls: type[CaffeLayer], parameter: str) -> set[str]:
    """The fields of a parameter message that a layer type asks for, found by letting it read them all."""
    key = cls, parameter
    if key not in _READ_FIELDS:
        fields = (
            {
                name: field
                for top in variants("LayerParameter")[parameter].values()
                for name, found in variants(top.type).items()
                for field in found.values()
            }
            if parameter in variants("LayerParameter")
            else {}
        )
        asked: set[str] = set()
        for names in ([], *([name] for name in fields), list(fields)):
            asked |= _asked(cls, parameter, {name: sample(fields[name]) for name in names})
        _READ_FIELDS[key] = asked
    return _READ_FIELDS[key]


def _asked(cls: type[CaffeLayer], parameter: str, values: Mapping[str, Value]) -> set[str]:
    inner = Message()
    for name, value in values.items():
        inner.add(name, value)
    definition = Message(name="l", type=next(name for name, known in REGISTRY.items() if known is cls))
    definition.set(parameter, inner)
    watched = Watched(definition)
    with contextlib.suppress(BridgeError):
        cls.read(_Lenient(parameters_of(cls, watched), watched, cls.enum_start))
    message = watched.messages(parameter)[0]
    return message.asked if isinstance(message, Watched) else set()


def sample(field: Field) -> Value:
    """A value of a field that is not its default."""
    if field.kind == "message":
        return Message()
    if field.kind == "enum":
        return Symbol(list(field.symbols.values())[-1])
    samples: dict[str, Value] = {"bool": not field.default, "string": "x", "float": 0.5, "double": 0.5, "bytes": "x"}
    return samples.get(field.kind, 3)


def page() -> str:
    """The whole page."""
    found = list(lines())
    count = {verdict: sum(line.verdict == verdict for line in found) for verdict in (READ, HARMLESS, REFUSED)}
    anywhere = "".join(f"- `{name}`: {reason}\n" for name, reason in sorted({**ANYWHERE, **LAYERS}.items()))
    total = f"\n{len(found)} fields of {len(dialects())} forks and caffe.proto: " + ", ".join(
        f"{number} {verdict}" for verdict, number in count.items()
    )
    parts = [HEAD, anywhere, total + ".\n"]
    for parameter in dict.fromkeys(line.parameter for line in found):
        own = [line for line in found if line.parameter == parameter]
        types = ", ".join(f"`{name}`" for name in own[0].owners) or "no such layer"
        parts.append(f"\n## {parameter}\n\nLayer types: {types}\n\n| field | in | becomes |\n|---|---|---|\n")
        parts += [f"| `{line.field}` | {_where(line.forks)} | {_becomes(line)} |\n" for line in own]
    return "".join(parts)


def _where(forks: Mapping[str, Field]) -> str:
    """``7 = 1: caffe.proto; 9: nvcaffe``: number, default, and the forks that have it so."""
    groups: dict[str, list[str]] = {}
    for fork, field in forks.items():
        value = str(field.default).lower() if isinstance(field.default, bool) else field.default
        default = "" if field.default in (None, "") else f" = {value}"
        groups.setdefault(f"{field.number}{default}", []).append(fork)
    return "; ".join(f"{key}: {', '.join(names)}" for key, names in groups.items())


def _becomes(line: Line) -> str:
    return f"{line.verdict}: {line.reason}" if line.reason else line.verdict


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
