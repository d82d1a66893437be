"""A digest of a method's code changes with its module, with what that imports from the same project, no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcheck.plugin import sources


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of one's own that imports a package beside it, and a module that nobody imports."""
    (tmp_path / "mine.py").write_text("import numpy\nfrom helpers.deep import kernel\nclass Cache: ...\n")
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "__init__.py").write_text("")
    (tmp_path / "helpers" / "deep.py").write_text("from . import sums\ndef kernel(): ...\n")
    (tmp_path / "helpers" / "sums.py").write_text("ONE = 1\n")
    (tmp_path / "other.py").write_text("ONE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("changed", ["mine.py", "helpers/deep.py", "helpers/sums.py", "helpers/__init__.py"])
def test_the_digest_changes_with_the_module_and_what_it_imports(project: Path, changed: str) -> None:
    before = sources.of_method("mine.Cache:window=3")
    path = project / changed
    path.write_text(path.read_text() + "# edited\n")
    assert before
    assert sources.of_method("mine.Cache:window=3") != before


def test_the_digest_changes_with_a_kernel_beside_the_code(project: Path) -> None:
    before = sources.of_method("mine.Cache")
    (project / "helpers" / "quantize.cu").write_text("__global__ void quantize() {}\n")
    assert sources.of_method("mine.Cache") != before


def test_the_digest_does_not_change_with_what_nobody_imports(project: Path) -> None:
    before = sources.of_method("mine.Cache")
    (project / "other.py").write_text("ONE = 2\n")
    assert sources.of_method("mine.Cache") == before


def test_nothing_is_imported_to_make_it(project: Path) -> None:
    (project / "mine.py").write_text("raise SystemExit(0)\n")
    assert sources.of_method("mine.Cache")


def test_built_in_methods_are_kvchecks_own() -> None:
    assert sources.of_method("snapkv:budget=0.25") == ""
    assert list(sources.of_methods(["snapkv", "kivi:bits=4"])) == ["kvcheck"]


def test_a_composed_method_is_both(project: Path) -> None:
    before = sources.of_method("snapkv+mine.Cache")
    assert before == sources.of_method("mine.Cache")


def test_what_cannot_be_found_has_no_digest() -> None:
    assert sources.of_method("no_such_package.Cache") == ""


def test_a_method_that_cannot_be_found_is_still_one_from_elsewhere() -> None:
    assert sources.elsewhere("snapkv+nowhere.Method:size=3") == ["nowhere"]
    assert sources.of_method("nowhere.Method") == ""
    assert sources.elsewhere("snapkv+kivi") == []
