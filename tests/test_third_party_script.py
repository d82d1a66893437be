"""The script that tries published packages: what its page says of a true batch follows from the properties."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from kvcheck.conformance import NAMES
from kvcheck.core.record import FAILS, HOLDS, UNSERVED, PropertyRecord

ROOT = Path(__file__).parents[1]
ROWS = "a_row_of_a_batch_is_as_alone"
BEAMS = "beams_that_are_reordered_go_on_as_their_parents"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("third_party", ROOT / ".ci" / "third_party.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


@pytest.mark.parametrize(
    ("rows", "beams", "said"),
    [
        ((HOLDS, ""), (HOLDS, ""), "held by its own verbs (2)"),
        ((HOLDS, ""), (UNSERVED, "it has no reorder_cache"), "held by its own verbs (1)"),
        ((HOLDS, ""), (FAILS, "beams behind a reordering: they differ"), "failed (1)"),
        (
            (UNSERVED, "it knows no batch of rows: RuntimeError: one sequence at a time"),
            (UNSERVED, "it knows no batch of rows: RuntimeError: one sequence at a time"),
            "rows are the fallback",
        ),
        ((UNSERVED, "it refuses the prompt: head_dim 48"), (UNSERVED, "it refuses the prompt"), "not tried"),
    ],
)
def test_what_is_said_of_a_true_batch_follows_from_its_properties(
    script: ModuleType, rows: tuple[str, str], beams: tuple[str, str], said: str
) -> None:
    found = [
        PropertyRecord(name, "theirs.Cache", outcome, reason=why)
        for name, (outcome, why) in ((ROWS, rows), (BEAMS, beams))
    ]
    others = [PropertyRecord("what_is_taken_back_was_never_there", "theirs.Cache", FAILS)]
    assert script.true_batch([*found, *others]) == said


def test_the_properties_of_a_true_batch_are_some_of_the_conformance_properties(script: ModuleType) -> None:
    assert set(script.BATCH) <= set(NAMES)


def test_the_page_has_the_columns_of_the_script(script: ModuleType, tmp_path: Path) -> None:
    head = next(line for line in script.page(tmp_path) if line.startswith("| package |"))
    assert head in script.PAGE.read_text("utf-8").splitlines()


def test_the_page_shows_the_lines_between_kvcheck_and_each_package(script: ModuleType) -> None:
    page = script.PAGE.read_text("utf-8")
    for package in script.PACKAGES:
        section = page.partition(f"\n## {package.name}\n")[2].partition("\n## ")[0]
        assert section.strip(), f"{package.name} has no section"
        assert package.glue in section or package.glue == "", f"the lines for {package.name} are not shown"


def test_packages_have_a_row_or_a_section_that_says_why_not(script: ModuleType) -> None:
    page = script.PAGE.read_text("utf-8")
    for package in script.PACKAGES:
        section = page.partition(f"\n## {package.name}\n")[2].partition("\n## ")[0]
        assert (f"\n| {package.name} " in page) != ("Not in the table" in section), package.name
