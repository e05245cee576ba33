"""The commands and the code of the pages run, in order, in one folder for each page, and print what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bridge
from tests.conftest import ROOT, need
from tests.example import Block, blocks, fill, run, same

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
RUN = ("sh", "python")


def test_every_language_of_a_block_is_known() -> None:
    found = {block.language for page in PAGES for block in blocks(page) if not (block.skipped or block.runner)}
    assert found <= {*RUN, "text"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_that_another_test_runs_is_run_there(page: Path) -> None:
    for block in blocks(page):
        assert not (block.skipped and block.runner), f"{page.name}:{block.line}"
        if block.runner:
            assert f'"{page.name}"' in (ROOT / block.runner).read_text(encoding="utf-8"), f"{page.name}:{block.line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_stands_in_fences_where_it_is_run(page: Path) -> None:
    plain = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^    (?:bridge|import|from|python3?|pip) .*", plain, re.MULTILINE)


def test_outputs_are_told_apart() -> None:
    assert same("a ... c\nd\n", "a b c\nd")
    assert not same("a ... c\nd", "a b c\ne")
    assert not same("a", "a b")


def test_the_reference_has_every_public_name() -> None:
    named = re.findall(r"^::: bridge\.(?:\w+\.)*(\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    errors = {name for name in bridge.__all__ if name.endswith("Error")}
    assert set(bridge.__all__) - errors <= {*named}
    assert "errors" in named


def runs_here(block: Block) -> bool:
    """Whether the block is run with its page."""
    return block.language in RUN and not block.skipped and not block.runner and "tox" not in block.text


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
    found = list(blocks(page))
    if not any(runs_here(block) for block in found):
        return
    need("chainer", "onnxruntime", "PIL", "matplotlib", "safetensors")
    fill(tmp_path)
    faults = []
    for block, after in zip(found, [*found[1:], None], strict=True):
        if not runs_here(block):
            continue
        expected = after.text if after is not None and after.language == "text" else None
        fault = problem(block, expected, tmp_path)
        if fault is not None:
            faults.append(f"{page.name}:{block.line}: {block.text}{fault}")
    assert not faults, "\n\n".join(faults)
