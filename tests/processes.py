"""The command line in processes of their own, and the small AlexNet that the tests of attacks read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "fixtures" / "golden" / "net_alexnet_mini"
DEPLOY, WEIGHTS = GOLDEN / "deploy.prototxt", GOLDEN / "weights.caffemodel"


def run(*args: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "bridge", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120, **options}
    return subprocess.run(command, env=environment, check=False, **options)
