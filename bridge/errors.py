"""Every error the tool raises on purpose, in one tree under :class:`BridgeError`.

    BridgeError
    ├── FormatError (ValueError)                     a file is not what its format demands
    │   └── BudgetError (MemoryError)                a file asks for more memory than the budget
    ├── ModelError (ValueError)                      a well-formed file describes an impossible net
    ├── UnknownFieldError (ValueError)               a field that nothing reads may change a result
    ├── UnsupportedLayerError (NotImplementedError)  a layer cannot be expressed in the wanted form
    ├── MissingExtraError (ImportError)              an optional package is missing
    ├── UsageError (ValueError)                      the call itself is wrong
    ├── MissingFileError (FileNotFoundError)         a named file cannot be read
    ├── NotFoundError (KeyError)                     no layer or blob has that name
    ├── ChangedError (OSError)                       a file changed after it was opened
    ├── OutputError (OSError)                        a file cannot be written
    └── DifferenceError                              what must be equal is not

Each leaf is also the builtin that a caller who does not know this package would
catch. An error has fields; its text is made of them in one place, :attr:`BridgeError.text`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TypeVar

_Error = TypeVar("_Error", bound="BridgeError")


class BridgeError(Exception):
    """Base of all errors of this package.

    ``ModelError("parameter 'pad'", where="net.prototxt", subject="layer 'conv1' (Convolution)", found="-1",
    expected="at least 0")`` reads ``net.prototxt: layer 'conv1' (Convolution): parameter 'pad' is -1, expected
    at least 0``.

    Args:
        problem: What is wrong, one line; with ``found``, the thing whose value is wrong.
        where: The file, the net, or the byte in a file.
        subject: The layer or blob, such as ``layer 'conv2' (Convolution)``.
        found: The value that is wrong, where ``problem`` does not say it.
        expected: What is expected in its place.
        hint: What the user can do about it, without a full stop.
        rule: One word for the rule that is broken, such as ``kernel``, for code that sorts errors.
    """

    def __init__(
        self,
        problem: str,
        *,
        where: str = "",
        subject: str = "",
        found: str = "",
        expected: str = "",
        hint: str = "",
        rule: str = "",
    ) -> None:
        self.problem, self.where, self.subject = problem, where, subject
        self.found, self.expected = found, expected
        self.hint, self.rule = hint, rule
        super().__init__(self.text)

    @property
    def reason(self) -> str:
        """The error in one line, without its place."""
        found = f" is {self.found}" if self.found else ""
        return f"{self.problem}{found}" + (f", expected {self.expected}" if self.expected else "")

    @property
    def text(self) -> str:
        """The error in one line, with its place and without the hint."""
        return ": ".join(part for part in (self.where, self.subject, self.reason) if part)

    def at(self: _Error, where: str = "", subject: str = "") -> _Error:
        """The same error with the places that it did not know: a file, a layer."""
        return type(self)(
            self.problem, where=self.where or where, subject=self.subject or subject, found=self.found,
            expected=self.expected, hint=self.hint, rule=self.rule,
        )  # fmt: skip

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (type(self), {name: value for name, value in vars(self).items() if isinstance(value, str)})

    def __str__(self) -> str:
        return f"{self.text}\n  hint: {self.hint}" if self.hint else self.text


def _rebuilt(kind: type[BridgeError], fields: dict[str, str]) -> BridgeError:
    """An error out of its fields, for pickle and copy."""
    return kind(**fields)


class FormatError(BridgeError, ValueError):
    """The bytes or the text of a file are not what the format demands."""


class ModelError(BridgeError, ValueError):
    """A well-formed file describes a net that cannot exist (shapes, wiring, counts)."""


class UnknownFieldError(BridgeError, ValueError):
    """A layer has a parameter that is not read, and that may change what the layer computes."""


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
    """A file or a folder cannot be written."""


class DifferenceError(BridgeError):
    """What must be equal is not: the one error that ends a command with status 1."""


_NAMES = 1000
"""Of more names than this, and of longer ones than _LETTERS, the nearest are not looked for: that takes time."""
_LETTERS = 200
_APART = 0.2
"""A name that is less like by as much as the best one is no help."""


def nearest(name: str, names: Iterable[str], likeness: float = 0.4) -> str:
    """A hint with those of the names that are most like ``name``; empty where none is, or where there are too many."""
    import difflib

    known = list(itertools.islice(dict.fromkeys(names), _NAMES + 1))
    if len(known) > _NAMES or len(name) > _LETTERS:
        return ""
    close = difflib.get_close_matches(name, [near for near in known if len(near) <= _LETTERS], 3, likeness)
    best = max((difflib.SequenceMatcher(None, near, name).ratio() for near in close), default=0.0)
    close = [near for near in close if difflib.SequenceMatcher(None, near, name).ratio() > best - _APART]
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
