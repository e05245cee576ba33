"""Run a command with BRIDGE_PYCAFFE_PYTHON naming an interpreter that has the real Caffe.

Usage: caffe.py FOLDER COMMAND...

BVLC Caffe 1.0 comes as wheels for Python 3.6 to 3.9, so it lives in a virtual environment of its own, made in FOLDER
from the Python 3.9 on PATH, in BRIDGE_PYTHON39, or under pyenv. Without one, this says so and runs nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

IS_39 = "import sys, venv; sys.exit(sys.version_info[:2] != (3, 9))"
PACKAGES = ["kendryte-caffe", "numpy<1.24", "protobuf<3.21"]


def works(python: str | Path, code: str) -> bool:
    """Whether this interpreter runs the code."""
    try:
        return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def python39() -> str | None:
    """An interpreter of Python 3.9."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [os.environ.get("BRIDGE_PYTHON39"), shutil.which("python3.9")]
    candidates += [str(path) for path in sorted(pyenv.glob("versions/3.9.*/bin/python3.9"))]
    return next((path for path in candidates if path and works(path, IS_39)), None)


def environment(folder: Path) -> Path | None:
    """The interpreter in ``folder``, made there if need be."""
    python = folder / "bin" / "python"
    if works(python, "import caffe"):
        return python
    base = python39()
    if base is None:
        return None
    subprocess.run([base, "-m", "venv", "--clear", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def main(folder: str, *command: str) -> int:
    """Make the environment and run the command."""
    python = environment(Path(folder))
    if python is None:
        print("nothing was run: the real Caffe needs a Python 3.9 on PATH, in BRIDGE_PYTHON39 or under pyenv")
        return 0
    print(f"real Caffe in {python}", flush=True)
    required = os.environ.get("BRIDGE_REQUIRE", "") + ",caffe"
    env = os.environ | {"BRIDGE_PYCAFFE_PYTHON": str(python), "BRIDGE_REQUIRE": required}
    return subprocess.run(command, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
