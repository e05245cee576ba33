"""Names of layers as names of a chain's children, and back.

Chainer keeps children as attributes and writes their names into the paths of its archives.
A child has the name of its layer, with three exceptions:

* a slash, and any other character that is not a letter, a digit or one of
  :data:`PLAIN`, becomes ``%`` and two hexadecimal digits per UTF-8 byte, as in a URL:
  ``conv1/3x3`` becomes ``conv1%2F3x3``;
* a name gets a ``%`` at its end if :class:`~bridge.chain.build.NetChain` has an attribute of that name, if it
  begins with an underscore, or if it consists of dots: ``params`` becomes ``params%``;
* the second layer of a name gets ``%~2`` at its end, the third ``%~3``.

Different names have different forms, so that :func:`unescape` finds the name of the layer.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

PLAIN = " !\"#$&'()*+,:;<=>?@[]^`{|}~-._"
"""Characters that do not change, besides letters and digits of any script."""


@functools.cache
def _taken() -> frozenset[str]:
    """The names of a chain's own attributes."""
    from bridge.chain.build import NetChain

    return frozenset(dir(NetChain)) | {"name", "net_inputs", "net_outputs"}


def escape(layer: str, occurrence: int = 1) -> str:
    """The name of the child for a layer: ``conv1%2F3x3`` for ``conv1/3x3``.

    Args:
        layer: The layer's name.
        occurrence: 1 for the first layer of that name, 2 for the second.
    """
    name = "".join(part if part.isalnum() or part in PLAIN else _quoted(part) for part in layer)
    if occurrence > 1:
        return f"{name}%~{occurrence}"
    refused = name in _taken() or name.startswith("_") or not name.strip(".")
    return f"{name}%" if refused else name


def _quoted(part: str) -> str:
    return quote(part, safe="", errors="surrogatepass")


def unescape(child: str) -> str:
    """The name of the layer for a child: ``conv1/3x3`` for ``conv1%2F3x3``."""
    return unquote(re.sub(r"%(~\d+)?\Z", "", child), errors="surrogatepass")


def named_links(link: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A link and all links below it, with their paths, in the order of their definition.

    Paths hold the names of layers. Chainer's own ``namedlinks`` sorts children by name and has escaped names.

    Args:
        link: Any :class:`chainer.Link`.
        path: The path of the link itself; the links below it are ``path/name``.

    Yields:
        The path and the link.
    """
    yield path, link
    for name, child in _children(link):
        yield from named_links(child, f"{path}/{name}" if path else name)


def _children(link: Any) -> list[tuple[str, Any]]:
    """The children of a link with the names of their layers, in the order of their definition."""
    names = getattr(link, "_children", ())
    if not isinstance(names, set):  # a ChainList
        return [(str(index), child) for index, child in enumerate(names)]
    built = hasattr(link, "net_outputs")
    return [(unescape(name) if built else name, child) for name, child in vars(link).items() if name in names]
