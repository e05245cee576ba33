"""What the caller calls layers and links: names, patterns, regular expressions, functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from bridge.errors import UsageError, nearest

Rename = Mapping[str, str] | Sequence[tuple[str, str]] | Callable[[str], str] | None


def renamer(rename: Rename) -> Callable[[str], str]:
    """A layer's name -> what its link is called.

    Raises:
        UsageError: It is none of what it may be; the function itself raises where a result is no name.
    """
    if isinstance(rename, Mapping):
        if wild := [key for key in rename if key.count("*") > 1]:
            raise UsageError(f"rename: '{wild[0]}' has {wild[0].count('*')} *, expected one, which carries over")
        return lambda name: _name(_mapped(name, rename), name)
    if callable(rename):
        return lambda name: _name(rename(name), name)
    rules = _rules(rename)

    def substituted(name: str) -> str:
        for pattern, text in rules:
            if match := pattern.fullmatch(name):
                return _expanded(match, text)
        return name

    return substituted


def unmatched(rename: Rename, names: Iterable[str]) -> list[str]:
    """What in ``rename`` is for none of the layers: names, patterns, regular expressions."""
    known = list(names)
    if isinstance(rename, Mapping):
        return [key for key in rename if not any(name == key or _carries(key, name) for name in known)]
    if callable(rename):
        return []
    return [pattern.pattern for pattern, _ in _rules(rename) if not any(map(pattern.fullmatch, known))]


def chosen(patterns: Iterable[str], names: Iterable[str], what: str) -> set[str]:
    """The names that patterns choose.

    Args:
        patterns: Names or patterns; one alone may be a text.
        names: What there is.
        what: What messages call the argument.

    Raises:
        UsageError: A pattern chooses none; the hint has the nearest names.
    """
    known, result = list(names), set[str]()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = [name for name in known if name == pattern or fnmatchcase(name, pattern)]
        if not found:
            raise UsageError(f"{what}: nothing is called '{pattern}'", hint=nearest(pattern, known))
        result.update(found)
    return result


def _rules(rename: Sequence[tuple[str, str]] | None) -> list[tuple[re.Pattern[str], str]]:
    try:
        return [(re.compile(pattern), text) for pattern, text in rename or ()]
    except (TypeError, ValueError, re.error) as error:
        expected = "a mapping, pairs of a regular expression and its replacement, or a function"
        raise UsageError(f"rename: {error}; expected {expected}") from None


def _expanded(match: re.Match[str], text: str) -> str:
    try:
        return match.expand(text)
    except (IndexError, re.error) as error:
        raise UsageError(f"rename: '{match.re.pattern}' does not go with '{text}': {error}") from None


def _mapped(name: str, rename: Mapping[str, str]) -> str:
    """The name by an exact entry, or by a pattern with one ``*`` that carries over."""
    if name in rename:
        return rename[name]
    for pattern, target in rename.items():
        if _carries(pattern, name):
            head, _, tail = pattern.partition("*")
            return target.replace("*", name[len(head) : len(name) - len(tail)], 1)
    return name


def _carries(pattern: str, name: str) -> bool:
    return "*" in pattern and fnmatchcase(name, pattern)


def _name(found: object, layer: str) -> str:
    if not isinstance(found, str):
        raise UsageError(f"rename: layer '{layer}' becomes {found!r}, expected a name")
    return found
