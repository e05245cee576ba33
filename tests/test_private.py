"""Nothing leaves the machine: no name is looked up, and nothing is written outside a run's folder."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, need
from tests.finetuning import MODEL, command, environment, small_pictures


def test_onnxruntime_is_imported_in_one_place() -> None:
    """There its telemetry is turned off before."""
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in ("bridge", "backends")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and any(name.startswith("onnxruntime") for name in (getattr(node, "module", None) or "", node.names[0].name))
    ]
    assert set(found) == {"bridge/engines/onnxruntime.py"}


def watched(line: list[str], home: Path, trace: Path) -> None:
    """Run a command with an empty home; where strace is there, also with its network calls recorded."""
    tracer = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmmsg", "-o", str(trace)]
    folders = {f"XDG_{name}_HOME": str(home / name.lower()) for name in ("CACHE", "CONFIG", "DATA", "STATE")}
    done = subprocess.run(
        [*(tracer if shutil.which("strace") else []), *line],
        env=environment(HOME=str(home), PYTHONPATH=str(ROOT), **folders),
        cwd=trace.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    calls = trace.read_text() if trace.exists() else ""
    assert re.findall(r".*sa_family=AF_INET.*", calls) == []


def test_a_run_and_its_predictions_look_up_no_name_and_write_nothing_elsewhere(tmp_path: Path) -> None:
    need("chainer", "onnxruntime", "PIL")
    home, pictures, work = (tmp_path / name for name in ("home", "pictures", "work"))
    for folder in (home, pictures, work):
        folder.mkdir()
    small_pictures(pictures)
    before = sorted(pictures.rglob("*"))
    options = ["--head", "fc8=3", "--train-head", "--scale", "0.004", "--epochs", "15", "--trunk-engine", "onnxruntime"]
    line = command("finetune", *MODEL, "--data", pictures, "-o", work / "run", *options)
    watched(line, home, work / "finetune.trace")
    watched(command("predict", work / "run", pictures, "--csv", work / "out.csv"), home, work / "predict.trace")
    # matplotlib keeps its list of the system's fonts there
    written = [path for path in home.rglob("*") if path.is_file() and "matplotlib" not in path.as_posix()]
    assert written == []
    assert sorted(pictures.rglob("*")) == before
    assert {path.name for path in work.iterdir()} <= {"run", "out.csv", "finetune.trace", "predict.trace"}


@pytest.fixture(autouse=True)
def _no_tracer_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
