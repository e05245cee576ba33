"""The notebooks run from their first cell to their last, and what they show shows itself."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, need

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SHOW = "def show(value):\n    assert getattr(value, '_repr_html_', lambda: repr(value))() or value is None\n"


def script(path: Path) -> str:
    """The cells in order. The value of a cell's last line is shown, as a notebook does."""
    text = SHOW
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            if isinstance(tree.body[-1], ast.Expr):
                call = ast.Call(ast.Name("show", ast.Load()), [tree.body[-1].value], [])
                tree.body[-1] = ast.Expr(call)
            text += ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    return text


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.training
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    need("chainer", "matplotlib", "onnxruntime", "PIL", "sklearn")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "MPLBACKEND": "agg"}
    line = [sys.executable, "-c", script(path)]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["nbformat"] == 4
    assert len({cell["id"] for cell in data["cells"]}) == len(data["cells"])
    code = [cell for cell in data["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 4
    assert not any(cell["outputs"] for cell in code)
