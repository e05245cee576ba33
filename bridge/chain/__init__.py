"""Chainer: a net as a trainable chain, and a trained chain as a net."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy

if TYPE_CHECKING:
    from bridge.chain.back import from_chain as from_chain
    from bridge.chain.build import NetChain as NetChain
    from bridge.chain.build import build_chain as build_chain
    from bridge.chain.caffe_function import CaffeFunction as CaffeFunction
    from bridge.chain.freezing import DelGradient as DelGradient
    from bridge.chain.freezing import freeze as freeze
    from bridge.chain.freezing import is_frozen as is_frozen
    from bridge.chain.freezing import thaw as thaw
    from bridge.chain.transplant import TransplantReport as TransplantReport
    from bridge.chain.transplant import transplant as transplant
else:
    __all__ = lazy(
        __name__,
        {
            "from_chain": "bridge.chain.back",
            "NetChain": "bridge.chain.build",
            "build_chain": "bridge.chain.build",
            "CaffeFunction": "bridge.chain.caffe_function",
            "DelGradient": "bridge.chain.freezing",
            "freeze": "bridge.chain.freezing",
            "is_frozen": "bridge.chain.freezing",
            "thaw": "bridge.chain.freezing",
            "TransplantReport": "bridge.chain.transplant",
            "transplant": "bridge.chain.transplant",
        },
    )
