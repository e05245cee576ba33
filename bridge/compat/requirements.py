"""The parts of ``pkg_resources`` and ``distutils`` that Chainer and ChainerCV use, on ``importlib.metadata``.

It is called ``pkg_resources`` only inside the modules that import it.
"""

from __future__ import annotations

import operator
import re
from importlib import metadata
from typing import NamedTuple

_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*((?:(?:[<>!=~]=|[<>])\s*[\w.]+\s*(?:,\s*|$))*)$")
_CLAUSE = re.compile(r"([<>!=~]=|[<>])\s*([\w.]+)")
_TRUE, _FALSE = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")
_TESTS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


class ResolutionError(Exception):
    """A requirement is not met."""


class WorkingSet:
    """The packages that are installed."""

    def require(self, *requirements: str) -> None:
        """Check requirements such as ``scipy`` or ``numpy>=1.18,<3``.

        Raises:
            ResolutionError: A package is not installed, or its version is outside.
        """
        for requirement in requirements:
            match = _REQUIREMENT.match(requirement)
            if match is None:
                raise ResolutionError(f"cannot read requirement '{requirement}'")
            try:
                found = _release(metadata.version(match[1]))
            except metadata.PackageNotFoundError:
                raise ResolutionError(f"{match[1]} is not installed") from None
            if not all(_holds(found, sign, wanted) for sign, wanted in _CLAUSE.findall(match[2])):
                raise ResolutionError(f"{match[1]} {'.'.join(map(str, found))} does not meet '{requirement}'")


class Distribution(NamedTuple):
    """An installed package; see :func:`get_distribution`."""

    version: str


def get_distribution(name: str) -> Distribution:
    """The package of that name; ``unknown`` is the version of one that runs from its source folder."""
    try:
        return Distribution(metadata.version(name))
    except metadata.PackageNotFoundError:
        return Distribution("unknown")


def strtobool(text: str) -> int:
    """1 for ``y``, ``yes``, ``t``, ``true``, ``on`` and ``1``, 0 for their opposites, in any case.

    Raises:
        ValueError: The text is neither.

    Source: distutils.util.strtobool.
    """
    lower = text.lower()
    if lower not in _TRUE + _FALSE:
        raise ValueError(f"invalid truth value {text!r}")
    return int(lower in _TRUE)


def _holds(found: tuple[int, ...], sign: str, wanted: str) -> bool:
    limit = _release(wanted)
    if sign == "~=":
        return found >= limit and found[: len(limit) - 1] == limit[:-1]
    width = max(len(found), len(limit))
    return bool(_TESTS[sign](_padded(found, width), _padded(limit, width)))


def _release(version: str) -> tuple[int, ...]:
    """The numbers in front; what marks a pre-release or a build is left out."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match.group().split("."))) if match else ()


def _padded(release: tuple[int, ...], width: int) -> tuple[int, ...]:
    return release + (0,) * (width - len(release))
