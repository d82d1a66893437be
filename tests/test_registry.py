"""Names to objects, imported on demand."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from kvcheck.core import registry
from kvcheck.core.errors import SpecError
from kvcheck.core.registry import Registry, exports, load_dotted, picker


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with the methods alpha and beta, and helpers that are no methods."""
    name = f"zoo_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / name
    folder.mkdir()
    for stem in ("__init__", "base", "_private"):
        (folder / f"{stem}.py").write_text("")
    for stem in ("beta", "alpha"):
        (folder / f"{stem}.py").write_text(f"METHOD = '{stem}!'\nTASKS = ('{stem}1', '{stem}2')\n")
    (folder / "broken.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points that a test may add to."""
    found: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in found if p.group == group])
    return found


def methods(package: str) -> Registry[str]:
    return Registry("method", package, "kvcheck.methods")


def test_names_are_the_module_stems_sorted(package: str) -> None:
    assert methods(package).names() == ("alpha", "beta", "broken")


def test_listing_names_imports_no_module(package: str) -> None:
    methods(package).names()
    assert f"{package}.alpha" not in sys.modules


def test_get_imports_the_module(package: str) -> None:
    assert methods(package).get("alpha") == "alpha!"


def test_an_unknown_name_comes_with_the_nearest(package: str) -> None:
    with pytest.raises(SpecError, match="did you mean alpha"):
        methods(package).get("alpah")


def test_a_module_that_lacks_a_package_says_which(package: str) -> None:
    with pytest.raises(SpecError, match="needs 'not_there_at_all'"):
        methods(package).get("broken")


def test_entry_points_join_the_names(package: str, points: list[EntryPoint]) -> None:
    points.append(EntryPoint("theirs", f"{package}.beta:METHOD", "kvcheck.methods"))
    assert methods(package).get("theirs") == "beta!"


def test_two_objects_of_one_name_are_refused_with_both_origins(package: str, points: list[EntryPoint]) -> None:
    points.append(EntryPoint("alpha", "other.place:METHOD", "kvcheck.methods"))
    with pytest.raises(SpecError, match=r"alpha:METHOD and other\.place:METHOD"):
        methods(package).names()


def test_tuples_of_objects_are_listed_by_their_names(package: str) -> None:
    tasks: Registry[str] = Registry(
        "task",
        package,
        "kvcheck.tasks",
        listing=lambda: exports(package, "TASKS", str, skip={"base", "broken"}),
        pick=picker(str),
    )
    assert (tasks.names(), tasks.get("beta2")) == (("alpha1", "alpha2", "beta1", "beta2"), "beta2")


def test_a_dotted_path_is_imported() -> None:
    assert load_dotted("kvcheck.core.spec.Spec").__name__ == "Spec"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("Spec", "not an import path"),
        ("no_such_pkg.mod.Class", "no module named 'no_such_pkg'"),
        ("kvcheck.no_such.Class", "no module named 'kvcheck.no_such'"),
        ("kvcheck.core.spec.Spek", "did you mean Spec"),
    ],
)
def test_a_wrong_path_is_refused_with_the_reason(path: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        load_dotted(path)
