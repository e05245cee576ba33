"""How tests start a command: here, in a process, on a terminal; and the small AlexNet of the tests of attacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bridge import cli

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "fixtures" / "golden" / "net_alexnet_mini"
DEPLOY, WEIGHTS = GOLDEN / "deploy.prototxt", GOLDEN / "weights.caffemodel"


def run(*args: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "bridge", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120, **options}
    return subprocess.run(command, env=environment, check=False, **options)


def ends(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    """Exit status, stdout and stderr of a command in this process."""
    with pytest.raises(SystemExit) as left:
        cli.main([*arguments])
    out, err = capfd.readouterr()
    return left.value.code, out, err


def on_terminal(*args: object, plain: bool, **environment: str) -> tuple[int, bytes]:
    """Exit status and stdout of a command whose stdout is a terminal; ``plain`` sets NO_COLOR."""
    import pty

    ours, theirs = pty.openpty()
    variables = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT), **environment}
    variables.pop("NO_COLOR", None)
    child = subprocess.Popen(
        [sys.executable, "-m", "bridge", *map(str, args)],
        stdout=theirs,
        env={**variables, **({"NO_COLOR": "1"} if plain else {})},
    )
    os.close(theirs)
    text = b""
    try:
        while piece := os.read(ours, 65536):
            text += piece
    except OSError:  # the child has closed its end
        pass
    os.close(ours)
    return child.wait(), text
