"""The files that the changelog is made of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "changes"


def kinds() -> set[str]:
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["towncrier"]
    assert ROOT / settings["directory"] == FOLDER
    assert (ROOT / settings["template"]).is_file()
    return {kind["directory"] for kind in settings["type"]}


@pytest.mark.parametrize("path", sorted(set(FOLDER.iterdir()) - {FOLDER / "template.md"}), ids=lambda path: path.name)
def test_it_has_a_name_and_sentences(path: Path) -> None:
    found = re.fullmatch(r"([\w-]+)\.([a-z]+)\.md", path.name)
    assert found, f"{path.name} is not NAME.KIND.md"
    assert found[2] in kinds()
    text = path.read_text(encoding="utf-8").strip()
    assert text.endswith(".")
    assert "\n\n" not in text
    assert not text.startswith(("-", "#"))
