"""Every error the tool raises on purpose, in one tree under :class:`BridgeError`.

Each leaf is also the builtin that a caller who does not know this package would
catch. The text of an error is one line: where, what was expected, what was found.
What to do about it is the ``hint``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable


class BridgeError(Exception):
    """Base of all errors of this package.

    Args:
        message: One line: where, what was expected, what was found.
        where: File, layer or byte the message is about; put in front of it.
        hint: What the user can do about it, without a full stop.
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.hint = hint

    def __str__(self) -> str:
        text = str(self.args[0])
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class FormatError(BridgeError, ValueError):
    """The bytes or the text of a file are not what the format demands."""


class ModelError(BridgeError, ValueError):
    """A well-formed file describes a net that cannot exist (shapes, wiring, counts)."""


class UnsupportedLayerError(BridgeError, NotImplementedError):
    """A layer, or one of its parameters, cannot be expressed in the wanted form."""


class MissingExtraError(BridgeError, ImportError):
    """A package that an optional feature needs is not installed or does not work."""


class UsageError(BridgeError, ValueError):
    """The call itself is wrong: an option, an argument, a missing file."""


class MissingFileError(BridgeError, FileNotFoundError):
    """A file that was named does not exist or cannot be read."""


class NotFoundError(BridgeError, KeyError):
    """A layer or blob of that name is not in the net."""


class BudgetError(FormatError, MemoryError):
    """A file asks for more memory than a command may take."""


class ChangedError(BridgeError, OSError):
    """A file is not what it was when it was opened."""


class OutputError(BridgeError, OSError):
    """A file cannot be written."""


class DifferenceError(BridgeError):
    """What must be equal is not: the one error that ends a command with status 1."""


_NAMES = 1000
"""Of more names than this, and of longer ones than _LETTERS, the nearest are not looked for: that takes time."""
_LETTERS = 200


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint with those of the names that are most like ``name``; empty where none is, or where there are too many."""
    import difflib

    known = list(itertools.islice(dict.fromkeys(names), _NAMES + 1))
    if len(known) > _NAMES or len(name) > _LETTERS:
        return ""
    close = difflib.get_close_matches(name, [near for near in known if len(near) <= _LETTERS], 3, 0.4)
    return "did you mean " + " or ".join(f"'{near}'" for near in close) + "?" if close else ""


class Hints:
    """Hints as of :func:`nearest` for many names among the same ones: for the first 10, then none.

    Each takes time for each of the names, and nobody reads more of them.

    Args:
        names: The names to choose from.
    """

    MOST = 10

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(itertools.islice(dict.fromkeys(names), _NAMES + 1))
        self._left = self.MOST

    def __call__(self, name: str) -> str:
        """The hint for a name."""
        self._left -= 1
        return nearest(name, self._names) if self._left >= 0 else ""


def printable(text: str) -> str:
    """Text out of a file, with escapes for what would steer a terminal or break a line."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
