"""How optional packages are installed: the lines that errors, notes and ``bridge doctor`` print come from here."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import shlex
import sys
from pathlib import Path

PUBLISHED = False
"""Whether the package is on an index, so that its name alone installs it."""
_WITH_CHAINER = frozenset({"all", "chainer", "demo", "finetune", "testing"})
"""Extras that bring Chainer, whose source builds with an older setuptools only."""


def pip(*extras: str) -> str:
    """A line for a shell that installs extras of this package, such as ``python -m pip install '/clone[finetune]'``.

    It names the clone that runs, or the wheel that was installed; where neither is known any more, a clone's folder.

    Args:
        extras: Names of extras in pyproject.toml.
    """
    windows = sys.platform == "win32"
    wanted = _requirement(",".join(extras))
    line = f"python -m pip install {_quoted(wanted) if windows else shlex.quote(wanted)}"
    if not _WITH_CHAINER & set(extras):
        return line
    # A URL, because pip splits these variables at spaces. Old pips hand the first one down to the build.
    limits = (Path(__file__).parent / "build-constraints.txt").as_uri()
    if windows:  # for cmd and PowerShell alike
        return f'cmd /c "set PIP_CONSTRAINT={limits}&& set PIP_BUILD_CONSTRAINT={limits}&& {line}"'
    return f"PIP_CONSTRAINT={limits} PIP_BUILD_CONSTRAINT={limits} {line}"


def _quoted(text: str) -> str:
    """As a word of Windows' shells, which know no single quotes."""
    return f'"{text}"' if " " in text else text


def _requirement(extras: str) -> str:
    source = _source()
    if PUBLISHED or source.endswith(".whl"):
        return f"weight-bridge[{extras}]" + (f" @ {source}" if source and not PUBLISHED else "")
    return f"{source or '.'}[{extras}]"


@functools.cache
def _source() -> str:
    """The folder of the clone, or the URL of the wheel, that this package comes from; empty where it is not there.

    Source: PEP 610, ``direct_url.json``.
    """
    clone = Path(__file__).parent.parent
    if (clone / "pyproject.toml").is_file():
        return str(clone)
    try:
        text = importlib.metadata.distribution("weight-bridge").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return ""
    found: dict[str, object] = json.loads(text or "{}")
    url = str(found.get("url", ""))
    if not url.startswith("file://"):
        return url if url.endswith(".whl") else ""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname  # on Windows it knows that /C:/clone is C:\\clone

    path = Path(url2pathname(urlsplit(url).path))
    if not path.exists():
        return ""
    return url if path.suffix == ".whl" else str(path)
