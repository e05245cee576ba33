"""The table of layer types in the docs says what is registered and tested."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from bridge.layers import REGISTRY
from tests.conftest import GOLDEN, ROOT
from tests.references import REFERENCES


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_layer_table", ROOT / "docs" / "make_layer_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    made = maker()
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run docs/make_layer_table.py"


def test_every_golden_case_is_about_known_types() -> None:
    found = maker().golden_cases()
    assert set(found) <= set(REGISTRY)
    assert {case for cases in found.values() for case in cases} == {path.name for path in GOLDEN}


def test_references_are_of_known_types() -> None:
    assert set(REFERENCES) <= set(REGISTRY)
