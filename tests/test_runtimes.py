"""Exported files in ONNX Runtime, OpenCV and OpenVINO: no worse than docs/runtimes.md says.

A case that the page does not know yet has to agree.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT, need
from tests.detectors import SITUATIONS, detectors, judge_detector
from tests.runtimes import AGREES, RUNTIMES, VERDICTS, Case, Runtime, cases, judge, known


@pytest.mark.parametrize("case", [*cases()], ids=lambda case: case.name)
@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.package)
def test_runtime_runs_what_was_exported(runtime: Runtime, case: Case, tmp_path: Path) -> None:
    need(runtime.package)
    result = judge(runtime, case, tmp_path)
    before = known().get(runtime.key, {}).get("cases", {}).get(case.name, [AGREES])[0]
    assert VERDICTS.index(result.verdict) >= VERDICTS.index(before), result


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.package)
def test_runtime_runs_detectors(runtime: Runtime, situation: str, tmp_path: Path) -> None:
    need("onnxruntime", runtime.package)
    for case in detectors():
        before = known().get(runtime.key, {}).get("detectors", {}).get(case.name, {}).get(situation, AGREES)
        assert VERDICTS.index(judge_detector(runtime, case, situation, tmp_path)) >= VERDICTS.index(before), case.name


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_runtime_table", ROOT / "docs" / "make_runtime_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_what_was_measured() -> None:
    made = maker()
    assert made.PAGE.read_text(encoding="utf-8") == made.page(known()), "run docs/make_runtime_table.py"
