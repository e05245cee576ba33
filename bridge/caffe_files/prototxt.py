"""Protocol buffers' text format, read by name with no schema.

Source: the text format specification of protocol buffers; ``caffe.Net`` and the
forks of Caffe write their nets in it. Reading without a schema is what lets a file
of any fork be read; :func:`parse` therefore never rejects a field it does not know.
"""

from __future__ import annotations

import re
from pathlib import Path

from bridge.errors import FormatError, MissingFileError
from bridge.schema.message import Message, Scalar, Symbol

_TOKEN = re.compile(
    r"""(?P<skip>[\s\ufeff]+|\#[^\n]*)
      | (?P<string>"[^"\\\n]*(?:\\.[^"\\\n]*)*"|'[^'\\\n]*(?:\\.[^'\\\n]*)*')
      | (?P<number>[-+]?\s*(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fF]?))(?![\w.])
      | (?P<word>[-+]?[A-Za-z_][\w.\-/]*)
      | (?P<mark>[{}<>\[\]:;,])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"((?:\\(?:[xX][0-9a-fA-F]{1,2}|[0-7]{1,3}))+)|\\.", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_WRITTEN = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\"\\]")
_UNSAFE_BYTE = re.compile(r"[^\x20-\x7e]|[\"\\]")
_SPECIAL = {"inf": float("inf"), "infinity": float("inf"), "nan": float("nan")}
MAX_DEPTH = 64
"""Messages nested deeper than this are refused; Caffe's own nets need five levels."""
MAX_TOKEN = 1000
"""A number or word of more characters is refused."""


def parse(text: str, where: str = "prototxt") -> Message:
    """Read a text-format message.

    Args:
        text: The message.
        where: Name of the file, for errors.

    Raises:
        FormatError: The text is not text format; says line and column.
    """
    return _Parser(text, where).message()


def parse_file(path: str | Path) -> Message:
    """Read a text-format file (UTF-8, or Latin-1 where it is not UTF-8).

    Raises:
        MissingFileError: The file cannot be opened.
        FormatError: Its content is not text format.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise MissingFileError(f"cannot be read: {error.strerror}", where=str(path)) from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return parse(text, str(path))


class _Parser:
    def __init__(self, text: str, where: str) -> None:
        self.text, self.where, self.at = text, where, 0
        self.kind, self.token, self.start = "", "", 0
        self.advance()

    def fail(self, expected: str) -> FormatError:
        line = self.text.count("\n", 0, self.start) + 1
        column = self.start - self.text.rfind("\n", 0, self.start)
        found = repr(self.token[:40]) if self.kind != "end" else "the end of the file"
        return FormatError(f"expected {expected}, found {found}", where=f"{self.where}:{line}:{column}")

    def advance(self) -> None:
        while self.at < len(self.text):
            match = _TOKEN.match(self.text, self.at)
            self.start = self.at
            if match is None:
                self.kind, self.token = "odd", self.text[self.at]
                raise self.fail("a field, a value or a bracket")
            self.at = match.end()
            if match.lastgroup != "skip":
                self.kind, self.token = str(match.lastgroup), match.group()
                return
        self.kind, self.token, self.start = "end", "", len(self.text)

    def take(self, mark: str) -> bool:
        if self.kind == "mark" and self.token == mark:
            self.advance()
            return True
        return False

    def message(self, closing: str = "", depth: int = 0) -> Message:
        if depth > MAX_DEPTH:
            raise self.fail(f"at most {MAX_DEPTH} nested messages")
        message = Message(self.where)
        while True:
            if self.take(closing) if closing else self.kind == "end":
                return message
            name = self.name()
            colon = self.take(":")
            if self.take("["):
                while not self.take("]"):
                    message.add(name, self.value(depth, raw=name.isdigit()))
                    self.take(",")
            elif colon or self.token in ("{", "<"):
                message.add(name, self.value(depth, raw=name.isdigit()))
            else:
                raise self.fail(f"':' or '{{' after field '{name}'")
            if not self.take(","):
                self.take(";")

    def name(self) -> str:
        if self.kind == "mark" and self.token == "[":  # an extension: [package.name]
            self.advance()
            name = self.token
            self.advance()
            if not self.take("]"):
                raise self.fail("']' after an extension's name")
            return name
        if self.kind != "word" and not self.token.isdigit():  # digits: a field that had no name in a binary file
            raise self.fail("a field name")
        name = self.token
        self.advance()
        return name

    def value(self, depth: int, raw: bool = False) -> Scalar | Message:
        if self.take("{"):
            return self.message("}", depth + 1)
        if self.take("<"):
            return self.message(">", depth + 1)
        kind, token = self.kind, self.token
        if kind == "string":
            parts = []
            while self.kind == "string":  # adjacent strings are one, as in C
                parts.append(self.token[1:-1])
                self.advance()
            return b"".join(map(_octets, parts)) if raw else "".join(map(_unescape, parts))
        if kind not in ("number", "word") or len(token) > MAX_TOKEN:
            raise self.fail("a value")
        self.advance()
        return _number(token) if kind == "number" else _word(token)


def _number(token: str) -> int | float:
    token = re.sub(r"\s+", "", token)
    if re.fullmatch(r"[-+]?0[xX][0-9a-fA-F]+", token):
        return int(token, 16)
    if re.fullmatch(r"[-+]?\d+", token):
        digits = token.lstrip("+-")
        octal = len(digits) > 1 and digits[0] == "0" and not set(digits) & set("89")
        return int(token, 8) if octal else int(token)
    return float(token.rstrip("fF"))


def _word(token: str) -> Scalar:
    if token in ("true", "True", "t"):
        return True
    if token in ("false", "False", "f"):
        return False
    special = _SPECIAL.get(token.lstrip("+-").lower())
    if special is not None:
        return -special if token.startswith("-") else special
    return Symbol(token)


def _unescape(body: str) -> str:
    """Resolve C escapes; bytes given by number are UTF-8, as the writers mean them."""
    return _ESCAPE.sub(_unescaped, body) if "\\" in body else body


def _unescaped(match: re.Match[str]) -> str:
    if not match.group(1):
        code = match.group()[1]
        return _ESCAPES.get(code, code)
    codes = match.group(1)[1:].split("\\")
    data = bytes(int(code[1:], 16) if code[0] in "xX" else int(code, 8) & 0xFF for code in codes)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _octets(body: str) -> bytes:
    """The bytes of a field that has only a number, as :func:`format` writes them."""

    def one(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code, 8) & 0xFF) if code.isdigit() else _ESCAPES.get(code, code)

    return re.sub(r"\\([0-7]{1,3}|.)", one, body).encode("latin-1", "replace")


def format(message: Message, indent: int = 0) -> str:
    """Write a message as text that :func:`parse`, and Caffe itself, reads back.

    Floats are written with as many digits as float32 needs to come back unchanged.
    """
    pad = "  " * indent
    lines = []
    for name, value in message.items():
        if isinstance(value, Message):
            body = format(value, indent + 1)
            lines.append(f"{pad}{name} {{\n{body}{pad}}}\n")
        else:
            lines.append(f"{pad}{name}: {_scalar(value)}\n")
    return "".join(lines)


def _scalar(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Symbol):
        return str(value)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
        return f'"{_UNSAFE_BYTE.sub(_escaped, value)}"'
    if isinstance(value, str):
        return f'"{_UNSAFE.sub(_escaped, value)}"'
    if isinstance(value, float):
        return f"{value:.9g}"
    return str(value)


def _escaped(match: re.Match[str]) -> str:
    char = match.group()
    return _WRITTEN.get(char) or f"\\{ord(char):03o}"
