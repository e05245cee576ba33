"""Run in a child process before anything else of the program: installs the hook there.

It is run by its path, with ``without`` and ``requested`` already among its globals, or imported.
"""

from __future__ import annotations

import sys
from pathlib import Path


def _install(without: tuple[str, ...], requested: tuple[str, ...]) -> None:
    root = str(Path(__file__).resolve().parents[2])
    sys.path.insert(0, root)
    try:
        from bridge import compat
    finally:
        sys.path.remove(root)
    compat.install(without=without, caffe_function="caffe-function" in requested)


_install(globals().get("without", ()), globals().get("requested", ()))
