"""A page per method, generated from its class and the shipped records."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcheck.methods import METHODS
from kvcheck.report import pages
from kvcheck.report.catalogue import describe, methods
from kvcheck.report.recorded import of_name, recorded, shown, summary

DOCS = Path(__file__).parents[2] / "docs" / "methods"


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_declares_what_a_page_needs(name: str) -> None:
    info, found = METHODS.get(name).info, describe(name, METHODS.origins()[name])
    assert (found.stage, found.summary, found.paper) == (info.stage, info.summary, info.paper)
    assert info.formula
    assert info.paper or name == "fp16"


@pytest.mark.parametrize("name", ["README", *METHODS.names()])
def test_the_page_in_the_docs_is_what_the_command_writes_today(name: str) -> None:
    lines = pages.index(METHODS.names()) if name == "README" else pages.page(name)
    assert (DOCS / f"{name}.md").read_text("utf-8") == "\n".join(lines) + "\n", "kvcheck methods --pages docs/methods"


def test_a_page_shows_accuracy_and_bytes_beside_fp16() -> None:
    text = "\n".join(pages.page("kivi"))
    assert "| | `fp16` | `kivi` | `kivi:bits=4` |" in text
    assert "| KV bytes | 1.00 |" in text
    assert "bits=2,group=32" in text


def test_a_method_without_records_says_so() -> None:
    assert "Not recorded." in list(pages.measured("smollm2", []))


def test_the_records_of_a_name_are_those_of_all_its_settings() -> None:
    assert [one.spec for one in of_name("kivi")] == ["kivi", "kivi:bits=4"]
    assert next(iter(recorded())) == "fp16"


@pytest.mark.parametrize("name", METHODS.names())
def test_what_is_shown_of_a_method_has_a_record_with_bytes(name: str) -> None:
    one = shown(name)
    assert one is not None
    assert one.bytes_text
    assert f"pytest --kv-method={one.spec}" in list(pages.page(name))


def test_a_method_whose_default_has_no_record_is_shown_as_recorded() -> None:
    assert "look_m" not in recorded()
    (row,) = [line for line in pages.index(("look_m",)) if line.startswith("| [")]
    assert "0.50 (`text_prior=false`)" in row
    listed = list(methods())
    (at,) = [at for at, line in enumerate(listed) if line.startswith("look_m ")]
    assert "0.50" in listed[at]
    assert "    recorded as look_m:text_prior=false" in listed


def test_a_method_without_any_record_is_named_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "shown", lambda name, model="mini": None)
    assert "pytest --kv-method=kivi" in list(pages.page("kivi"))
    assert any(line.startswith("| [`kivi`](kivi.md) | compression |  |  |  |") for line in pages.index(("kivi",)))


def test_a_summary_without_memory_has_no_bytes() -> None:
    assert summary("x", []).bytes_text == ""
