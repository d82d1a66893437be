"""The page that reckons a large sweep says what its script says, from figures that stand in the page on speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcheck.sweep import cost

DOCS = Path(__file__).parents[2] / "docs" / "reference"


def test_its_seconds_are_those_that_were_measured() -> None:
    page = (DOCS / "speed.md").read_text("utf-8")
    part = page.partition("## On a GPU: measured")[2].partition("## On a GPU: how")[0]
    rows = [line.split("|") for line in part.splitlines() if line.startswith("| `")]
    full = [row for row in rows if row[1].strip(" `") == "fp16"]
    assert [row[6].strip() for row in full] == ["247.9 ms", "1.38 s"]
    assert [row[9].strip() for row in full] == ["20.8 ms", "23.9 ms"]
    steps = {row[1]: float(row[11]) for row in rows}  # of a method with two rows the later one, at the greater length
    assert sorted(steps.values()) == sorted(cost.STEP)
    assert cost.TTFT == {8192: 0.2479, 32768: 1.38}
    assert cost.TPOT == {8192: 0.0208, 32768: 0.0239}


def test_between_the_lengths_that_were_measured_and_beyond_them_it_reckons_no_less_than_the_roofline() -> None:
    for length in (8192, 32768, 131072):
        prompt, step = cost.floors(length)
        assert cost.prefill(length) > 1.5 * prompt
        assert cost.step(length) > step
    assert cost.prefill(8192) == pytest.approx(0.2479)
    assert cost.step(32768) == pytest.approx(0.0239)


def test_the_page_holds_the_tables_of_the_script() -> None:
    page = (DOCS / "sweep_cost.md").read_text("utf-8")
    assert "\n".join(cost.hours(cost.parts())) in page
    assert "\n".join(cost.growth(cost.parts(), (64,))[2:]) in page


@pytest.mark.nightly
def test_the_page_holds_every_row_of_the_script() -> None:
    page = (DOCS / "sweep_cost.md").read_text("utf-8")
    assert "\n".join(cost.growth(cost.parts())) in page
