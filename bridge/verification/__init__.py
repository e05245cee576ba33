"""Proof that weights arrived: bits of blobs, outputs of layers, consistency of the net."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.lazy import lazy

if TYPE_CHECKING:
    from bridge.verification.report import Report as Report
    from bridge.verification.run import verify as verify
else:
    __all__ = lazy(
        __name__,
        {
            "Report": "bridge.verification.report",
            "verify": "bridge.verification.run",
        },
    )
