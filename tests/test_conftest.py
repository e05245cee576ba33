"""A skip names what is missing, and is a failure where that was promised."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import conftest


def test_absent_package_skips(monkeypatch):
    monkeypatch.setattr(conftest, "REQUIRED", frozenset())
    with pytest.raises(pytest.skip.Exception, match="package no_such_package is not installed"):
        conftest.need("no_such_package")


def test_absent_package_fails_where_it_is_promised(monkeypatch):
    monkeypatch.setattr(conftest, "REQUIRED", frozenset({"no_such_package"}))
    with pytest.raises(pytest.fail.Exception, match="promises no_such_package"):
        conftest.need("no_such_package")


def test_absent_model_skips_and_fails_alike(monkeypatch, tmp_path):
    monkeypatch.setattr(conftest, "ZOO", tmp_path)
    monkeypatch.setattr(conftest, "REQUIRED", frozenset())
    with pytest.raises(pytest.skip.Exception, match="no_such_model is not in"):
        conftest.zoo("no_such_model")
    monkeypatch.setattr(conftest, "REQUIRED", frozenset({"zoo"}))
    with pytest.raises(pytest.fail.Exception, match="promises zoo"):
        conftest.zoo("no_such_model")


def starts() -> None:
    subprocess.run([sys.executable, "-V"], check=True)


def starts_by_another() -> None:
    assert [starts() for _ in range(1)]


def starts_none() -> None:
    print("subprocess")


@pytest.mark.parametrize(("function", "expected"), [(starts, True), (starts_by_another, True), (starts_none, False)])
def test_what_starts_a_process_is_told_from_its_code(function, expected):
    assert conftest._starts_process(function) == expected


def test_training_is_marked(request):
    assert not request.node.get_closest_marker("training")
    about = [item for item in request.session.items if item.path.name.startswith("test_finetune")]
    assert all(item.get_closest_marker("training") for item in about)
