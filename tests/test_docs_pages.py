"""The commands and the code of the pages run, in order, in one folder for each page, and print what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bridge
from tests.conftest import ROOT, need
from tests.example import Block, blocks, fill, run, same

DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *(
        DOCS / f"{name}.md"
        for name in (
            "index", "from-opencv", "from-pycaffe", "from-caffefunction", "formats", "readers", "proof", "terminal",
            "look", "migrate", "troubleshooting",
        )
    ),
]  # fmt: skip
"""The pages that are run as a whole; the other pages' blocks are run by the tests of what they describe."""
RUN = ("sh", "python")


def test_every_language_of_a_block_is_known() -> None:
    found = {block.language for page in PAGES for block in blocks(page) if not block.skipped}
    assert found <= {*RUN, "text"}


def test_outputs_are_told_apart() -> None:
    assert same("a ... c\nd\n", "a b c\nd")
    assert not same("a ... c\nd", "a b c\ne")
    assert not same("a", "a b")


def test_the_reference_has_every_public_name() -> None:
    named = re.findall(r"^::: bridge\.(?:\w+\.)*(\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    errors = {name for name in bridge.__all__ if name.endswith("Error")}
    assert set(bridge.__all__) - errors <= {*named}
    assert "errors" in named


def problem(block: Block, expected: str | None, folder: Path) -> str | None:
    """Why a block does not do what the page says; ``None`` if it does."""
    done = run(block, folder)
    wanted = 0
    if expected is not None:
        wanted = 2 if "bridge: " in expected else 1 if "FAILED" in expected else 0
        output = done.stderr if wanted == 2 else done.stdout
        if not same(expected, output):
            return f"printed\n{output}\nexpected\n{expected}\n{done.stderr}"
    return None if done.returncode == wanted else f"status {done.returncode}\n{done.stderr}"


@pytest.mark.process
@pytest.mark.training
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_it_stands(page: Path, tmp_path: Path) -> None:
    need("chainer", "onnxruntime", "PIL", "matplotlib", "safetensors")
    fill(tmp_path)
    found = list(blocks(page))
    faults = []
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.skipped or block.language not in RUN or "tox" in block.text:
            continue
        expected = after.text if after is not None and after.language == "text" else None
        fault = problem(block, expected, tmp_path)
        if fault is not None:
            faults.append(f"{page.name}:{block.line}: {block.text}{fault}")
    assert not faults, "\n\n".join(faults)
