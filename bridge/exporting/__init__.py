"""Exporting: a net, or a chain that the user wrote, to an ONNX file that is checked before it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy

if TYPE_CHECKING:
    from bridge.exporting.chain import export_chain as export_chain
    from bridge.exporting.net import export_onnx as export_onnx
else:
    __all__ = lazy(
        __name__,
        {
            "export_chain": "bridge.exporting.chain",
            "export_onnx": "bridge.exporting.net",
        },
    )
