"""Names of layers as names of a chain's children, reversibly.

Chainer keeps children as attributes and writes their names into the paths of its archives.
A child is called what its layer is called, except that

* a slash, and any other character that is neither a letter, a digit nor one of
  :data:`PLAIN`, becomes ``%`` and two hexadecimal digits per UTF-8 byte, as in a URL:
  ``conv1/3x3`` is ``conv1%2F3x3``;
* a name that :class:`~bridge.chain.build.NetChain` has as an attribute, that begins with an
  underscore, or that is nothing but dots gets a ``%`` behind it: ``params`` is ``params%``;
* the second layer of a name gets ``%~2`` behind it, the third ``%~3``.

So every name has one such form, and every such form is of one name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

PLAIN = " !\"#$&'()*+,:;<=>?@[]^`{|}~-._"
"""Characters that stay as they are, beside letters and digits of any script."""


@functools.cache
def _taken() -> frozenset[str]:
    from bridge.chain.build import NetChain

    return frozenset(dir(NetChain)) | {"name", "net_inputs", "net_outputs"}


def escape(layer: str, occurrence: int = 1) -> str:
    """The name of the child for a layer.

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
    """The layer's name from the name of its child."""
    return unquote(re.sub(r"%(~\d+)?\Z", "", child), errors="surrogatepass")


def named_links(link: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A link and all below it in the order of their definition, by paths of names that people know.

    Chainer's own ``namedlinks`` sorts children by name and knows layers by their escaped names.

    Args:
        link: Any :class:`chainer.Link`.
        path: What to call it; the links below are ``path/name``.
    """
    yield path, link
    for name, child in _children(link):
        yield from named_links(child, f"{path}/{name}" if path else name)


def _children(link: Any) -> list[tuple[str, Any]]:
    names = getattr(link, "_children", ())
    if not isinstance(names, set):  # a ChainList
        return [(str(index), child) for index, child in enumerate(names)]
    built = hasattr(link, "net_outputs")
    return [(unescape(name) if built else name, child) for name, child in vars(link).items() if name in names]
