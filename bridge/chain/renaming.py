"""The names of layers and links in a call: exact names, patterns, regular expressions and functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from bridge.errors import UsageError, nearest

Rename = Mapping[str, str] | Sequence[tuple[str, str]] | Callable[[str], str] | None
"""How layers are renamed to links: a mapping, pairs of a regular expression and its replacement, or a function."""


def renamer(rename: Rename) -> Callable[[str], str]:
    """A function from the name of a layer to the name of its link.

    For example, ``{"conv*": "features.*"}`` renames ``conv1`` to ``features.1``, and leaves other names unchanged.

    Raises:
        UsageError: ``rename`` has none of the forms of :data:`Rename`. The returned function raises it too, if a new
            name is not text.
    """
    if isinstance(rename, Mapping):
        if wild := [key for key in rename if key.count("*") > 1]:
            raise UsageError(f"rename: '{wild[0]}' has {wild[0].count('*')} *", expected="one")
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
    """The names, patterns and regular expressions in ``rename`` that match none of the layers ``names``."""
    known = list(names)
    if isinstance(rename, Mapping):
        return [key for key in rename if not any(name == key or _matches(key, name) for name in known)]
    if callable(rename):
        return []
    return [pattern.pattern for pattern, _ in _rules(rename) if not any(map(pattern.fullmatch, known))]


def chosen(patterns: Iterable[str], names: Iterable[str], what: str) -> set[str]:
    """The names that match any of the patterns.

    Args:
        patterns: Names, or patterns such as ``conv*``; a single one may be given as text.
        names: The names to choose from.
        what: The name of the argument, for the message.

    Raises:
        UsageError: A pattern matches no name; the hint has the nearest names.
    """
    known, result = list(names), set[str]()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = [name for name in known if name == pattern or fnmatchcase(name, pattern)]
        if not matches:
            raise UsageError(f"{what}: nothing is called '{pattern}'", hint=nearest(pattern, known))
        result.update(matches)
    return result


def _rules(rename: Sequence[tuple[str, str]] | None) -> list[tuple[re.Pattern[str], str]]:
    """The compiled regular expressions with their replacements."""
    try:
        return [(re.compile(pattern), text) for pattern, text in rename or ()]
    except (TypeError, ValueError, re.error) as error:
        expected = "a mapping, pairs of a regular expression and its replacement, or a function"
        raise UsageError(f"rename: {error}", expected=expected) from None


def _expanded(match: re.Match[str], text: str) -> str:
    try:
        return match.expand(text)
    except (IndexError, re.error) as error:
        raise UsageError(f"rename: '{text}' is no valid replacement for '{match.re.pattern}': {error}") from None


def _mapped(name: str, rename: Mapping[str, str]) -> str:
    """The new name by an exact entry, or by a pattern with one ``*``, whose match replaces the ``*`` of the target."""
    if name in rename:
        return rename[name]
    for pattern, target in rename.items():
        if _matches(pattern, name):
            head, _, tail = pattern.partition("*")
            return target.replace("*", name[len(head) : len(name) - len(tail)], 1)
    return name


def _matches(pattern: str, name: str) -> bool:
    """Whether a name matches a pattern with a ``*``."""
    return "*" in pattern and fnmatchcase(name, pattern)


def _name(name: object, layer: str) -> str:
    if not isinstance(name, str):
        raise UsageError(f"rename: layer '{layer}' becomes {name!r}", expected="a name")
    return name
