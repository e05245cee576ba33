"""Protocol buffers' text format, read by name with no schema.

Source: the text format specification of protocol buffers; ``caffe.Net`` and the
forks of Caffe write their nets in it. Reading without a schema is what lets a file
of any fork be read; :func:`parse` therefore never rejects a field it does not know.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from bridge.caffe_files import nans
from bridge.errors import FormatError
from bridge.limits.budget import FIELDS, fields
from bridge.limits.sources import read_file
from bridge.schema.message import Fixed32, Fixed64, Group, Message, Scalar, Symbol

# Each repetition is of one class of characters, and none can take what the next one needs, so that a match takes
# time in proportion to its length. Strings with escapes are scanned by hand.
_TOKEN = re.compile(
    r"""(?P<skip>[\s\ufeff]+|\#[^\n]*)
      | (?P<string>"[^"\\\n]*"|'[^'\\\n]*')
      | (?P<quote>["'])
      | (?P<number>[-+]?\s*(?:0[xX][0-9a-fA-F]+|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?[fF]?))(?![\w.])
      | (?P<word>[-+]?[A-Za-z_][\w.\-/]*)
      | (?P<mark>[{}<>\[\]:;,])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(rb"\\([xX][0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
_RARE = re.compile(rb"\\(?![abfnrtv'\"0-7]|x[0-9a-fA-F]{2})|\\[4-7][0-7]{2}")
"""Escapes that Python does not have, or not so."""
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_ESCAPES.update({f"{code:03o}".encode(): bytes([code & 0xFF]) for code in range(512)})
_WRITTEN = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\"\\\udc80-\udcff]")
_WRITTEN_BYTES = {code: f"\\{code:03o}" for code in range(256) if not 0x20 <= code < 0x7F}
_WRITTEN_BYTES.update({ord(char): written for char, written in _WRITTEN.items()})
_SPECIAL = {"inf": float("inf"), "infinity": float("inf"), "nan": float("nan")}
MAX_DEPTH = 64
"""Messages nested deeper than this are refused; Caffe's own nets need five levels."""
MAX_TOKEN = 1000
"""A number or word of more characters is refused."""
MAX_TEXT = 1 << 20
"""A longer string is refused, except in a field that has only a number, whose content nothing here reads."""
_CONTENT = "0"
"""In place of a field's name: the bytes of a group. No field has this number."""
_FIXED: dict[int, type[Fixed32] | type[Fixed64]] = {10: Fixed32, 18: Fixed64}
"""Characters of a hexadecimal number that stands for a fixed width."""


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
    """Read a text-format file.

    Names are bytes, as in Caffe: what is not UTF-8 is kept as it is (Python's ``surrogateescape``).

    Raises:
        MissingFileError: The file cannot be opened.
        FormatError: Its content is not text format.
    """
    return parse(read_file(path).decode("utf-8", "surrogateescape"), str(path))


class _Parser:
    def __init__(self, text: str, where: str) -> None:
        self.text, self.where, self.at = text, where, 0
        self.kind, self.token, self.start = "", "", 0
        self.left = 3 * FIELDS + fields(len(text), 64)
        self.advance()

    def fail(self, expected: str) -> FormatError:
        line = self.text.count("\n", 0, self.start) + 1
        column = self.start - self.text.rfind("\n", 0, self.start)
        found = repr(self.token[:40]) if self.kind != "end" else "the end of the file"
        return FormatError(f"found {found}", expected=expected, where=f"{self.where}:{line}:{column}", hint=self.hint())

    def hint(self) -> str:
        """What a character that no text has may come from."""
        binary = self.kind == "odd" and ord(self.token) < 32
        return "the file is no text; are prototxt and weights in the wrong order?" if binary else ""

    def advance(self) -> None:
        while self.at < len(self.text):
            match = _TOKEN.match(self.text, self.at)
            self.start = self.at
            if match is None:
                self.kind, self.token = "odd", self.text[self.at]
                raise self.fail("a field, a value or a bracket")
            self.at = match.end()
            if match.lastgroup == "quote":
                self.kind, self.token = "string", self._escaped_string(match.group())
                return
            if match.lastgroup != "skip":
                self.kind, self.token = str(match.lastgroup), match.group()
                return
            if match.group()[0] == "#":
                self.spend()
        self.kind, self.token, self.start = "end", "", len(self.text)

    def _escaped_string(self, quote: str) -> str:
        """The string that begins at the token, up to the first quotation mark behind an even number of backslashes."""
        end = self.at
        while (end := self.text.find(quote, end)) >= 0:
            body = end
            while self.text[body - 1] == "\\":
                body -= 1
            end += 1
            if (end - 1 - body) % 2 == 0:
                break
        if end < 0 or self.text.find("\n", self.at, end) >= 0:
            self.kind, self.token = "invalid", quote
            raise self.fail("a string that ends on its line")
        self.at = end
        return self.text[self.start : end]

    def spend(self) -> None:
        """Count a field or a comment: no net has more of them than this allows."""
        self.left -= 1
        if self.left < 0:
            raise self.fail("a net, which has fewer fields and comments")

    def add(self, message: Message, name: str, depth: int) -> None:
        """The value that follows, for a field."""
        self.spend()
        message.add(name, self.value(depth, raw=name.isdigit()))

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
                    self.add(message, name, depth)
                    self.take(",")
            elif colon or self.token in ("{", "<"):
                self.add(message, name, depth)
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
        if self.token in ("{", "<") and self.kind == "mark":
            closing = "}" if self.take("{") else ">" * self.take("<")
            inner = self.message(closing, depth + 1)
            content = inner.get(_CONTENT) if raw else None
            return Group(content) if isinstance(content, bytes) else inner
        kind, token, end = self.kind, self.token, self.start + len(self.token)
        if kind == "string":
            return self.string(raw)
        if kind not in ("number", "word") or len(token) > MAX_TOKEN:
            raise self.fail("a value")
        self.advance()
        fixed = _FIXED.get(len(token)) if raw and token[:2] == "0x" else None
        if fixed is not None:
            whole: Scalar = fixed(token, 16)
            return whole
        found = _number(token) if kind == "number" else _word(token)
        return nans.read(self.text, end) if found != found else found

    def string(self, raw: bool) -> str | bytes:
        """Adjacent strings are one, as in C. Escapes give bytes, which may be parts of a character of UTF-8."""
        parts = []
        while self.kind == "string":
            body = self.token[1:-1]
            if len(body) > MAX_TEXT and not raw:
                raise self.fail(f"a string of at most {MAX_TEXT} characters")
            data = body.encode("utf-8", "surrogateescape")
            parts.append(_octets(data) if "\\" in body else data)
            self.advance()
        whole = b"".join(parts)
        return whole if raw else whole.decode("utf-8", "surrogateescape")


def _number(token: str) -> int | float:
    token = "".join(token.split())
    digits = token.lstrip("+-")
    if digits[:2] in ("0x", "0X"):
        return int(token, 16)
    if digits.isdecimal():
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


def _octets(body: bytes) -> bytes:
    """A string without its escapes."""
    if _RARE.search(body.replace(b"\\\\", b"  ")):
        return _ESCAPE.sub(_unescaped, body)
    return codecs.escape_decode(body)[0]  # in the memory that the result takes, and much faster


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match[1]
    known = _ESCAPES.get(code)
    if known is not None:
        return known
    if code[:1] in b"xX" and len(code) > 1:
        return bytes([int(code[1:], 16)])
    return bytes([int(code, 8) & 0xFF]) if code.isdigit() and code < b"8" else code


def format(message: Message, indent: int = 0) -> str:
    """Write a message as text that :func:`parse`, and Caffe itself, reads back.

    Floats are written with as many digits as they need to come back unchanged. A field without a name has its number
    for one, and a value that is its bytes: a string, 8 or 16 hexadecimal digits, or a group as ``{ 0: string }``.
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
        text = value.decode("latin-1").translate(_WRITTEN_BYTES)
        return f'{{ {_CONTENT}: "{text}" }}' if isinstance(value, Group) else f'"{text}"'
    if isinstance(value, str):
        return f'"{_UNSAFE.sub(_escaped, value)}"'
    if isinstance(value, Fixed32):
        return f"0x{value:08x}"
    if isinstance(value, Fixed64):
        return f"0x{value:016x}"
    if isinstance(value, float):
        return _float(value)
    return str(value)


def _float(value: float) -> str:
    if value == 0:
        return "-0.0" if str(value)[0] == "-" else "0"
    if value != value:
        return nans.written(value)
    short = f"{value:.9g}"
    return short if float(short) == value else repr(value)


def _escaped(match: re.Match[str]) -> str:
    char = match.group()
    return _WRITTEN.get(char) or f"\\{ord(char) & 0xFF:03o}"
