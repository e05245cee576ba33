"""Proof that weights arrived: bits of blobs, outputs of layers, consistency of the net."""

from __future__ import annotations

from bridge.verification.report import Report
from bridge.verification.run import verify

__all__ = ["Report", "verify"]
