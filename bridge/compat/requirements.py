"""The part of ``pkg_resources`` that Chainer's testing helpers use, on ``importlib.metadata``.

It is called ``pkg_resources`` only inside those modules.
"""

from __future__ import annotations

import operator
import re
from importlib import metadata

_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*((?:(?:[<>!=~]=|[<>])\s*[\w.]+\s*(?:,\s*|$))*)$")
_CLAUSE = re.compile(r"([<>!=~]=|[<>])\s*([\w.]+)")
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
