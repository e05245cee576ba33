"""Names of layers as names of a chain's children, reversibly.

Chainer keeps children as attributes and writes their names into paths, so a name must
not be one of :class:`chainer.Chain`'s own attributes and must not hold a slash. Such
characters become ``%`` and two hexadecimal digits per UTF-8 byte, as in a URL; a name
that Chainer has taken gets a ``%`` behind it. Every name has one such form, and back.
"""

from __future__ import annotations

import functools
from urllib.parse import quote, unquote

_PLAIN = " !\"#$&'()*+,:;<=>?@[]^`{|}~-."  # left as they are, beside letters, digits and '_'


@functools.cache
def _taken() -> frozenset[str]:
    from bridge.chain.build import NetChain

    return frozenset(dir(NetChain)) | {"name"}


def escape(layer: str) -> str:
    """The name of the child for a layer: ``conv1/3x3`` is ``conv1%2F3x3``, ``params`` is ``params%``."""
    name = "".join(part if part.isalnum() or part in _PLAIN or part == "_" else quote(part, safe="") for part in layer)
    return f"{name}%" if name in _taken() or name.startswith("_") or not name else name


def unescape(child: str) -> str:
    """The layer's name from the name of its child."""
    return unquote(child.removesuffix("%"))
