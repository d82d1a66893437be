"""A series of runs: in which of them a method changed, told first; each held against the last that changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from building import night

from kvcheck.cli.commands import main
from kvcheck.core.errors import SpecError
from kvcheck.core.record import Run
from kvcheck.judging.history import BETTER, FIRST, MOVED, SAME, WORSE, ordered, series
from kvcheck.report import history
from kvcheck.report.html.history import page
from kvcheck.store.run_file import write_run


def changes(*runs: Run) -> list[str]:
    (one,) = series(runs)
    return [each.change for each in one.points]


def test_a_method_that_loses_much_is_worse_since_that_run() -> None:
    assert changes(night(1, 2), night(2, 2), night(3, 8), night(4, 8)) == [FIRST, SAME, WORSE, SAME]


def test_what_is_too_little_to_be_shown_is_not_called_a_change() -> None:
    assert changes(night(1, 2), night(2, 3)) == [FIRST, MOVED]


def test_small_steps_add_up() -> None:
    assert changes(*(night(at, 1 + at) for at in range(1, 7))).count(WORSE) == 1


def test_a_gain_is_told_as_one() -> None:
    found = series([night(1, 8), night(2, 1)])[0]
    assert found.points[1].change == BETTER
    assert "accuracy drop against 111111111 -43.8 points" in history.told(found)[0][1]


def test_more_bytes_are_worse_and_fewer_are_better() -> None:
    assert changes(night(1, 2), night(2, 2, held=600), night(3, 2, held=400)) == [FIRST, WORSE, BETTER]


def test_slower_steps_are_worse_where_their_intervals_are_apart() -> None:
    assert changes(night(1, 2), night(2, 2, ratio=1.12), night(3, 2, ratio=1.4)) == [FIRST, SAME, WORSE]


def test_what_is_worse_in_one_thing_and_better_in_another_is_worse_and_tells_both() -> None:
    found = series([night(1, 8), night(2, 1, ratio=1.4)])[0]
    assert found.points[1].change == WORSE
    said = history.told(found)[0][1]
    assert "-43.8 points" in said
    assert "tpot 1.10 -> 1.40" in said


def test_runs_are_put_in_the_order_in_which_they_began() -> None:
    one, two = night(1, 2), night(2, 2)
    assert ordered([two, one]) == [one, two]
    undated = replace(one, header=replace(one.header, time=""))
    assert ordered([two, undated]) == [two, undated]


def test_two_runs_are_the_least_and_they_are_of_one_model() -> None:
    with pytest.raises(SpecError, match="two runs or more"):
        series([night(1, 2)])
    other = night(2, 2)
    with pytest.raises(SpecError, match="different models"):
        series([night(1, 2), replace(other, header=replace(other.header, model="beef"))])


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Three runs on disk, the last of which is worse."""
    for at, lost in ((1, 2), (2, 2), (3, 8)):
        write_run(tmp_path / f"{at}.json", night(at, lost))
    return [str(tmp_path / f"{at}.json") for at in (2, 3, 1)]


def test_the_outcome_comes_first_with_the_commit_and_the_numbers(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["history", *files]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("fail: snapkv on mini: worse since 333333333 (main, 2026-11-13): accuracy drop against")
    assert "  git log 222222222..333333333" in said
    assert max(map(len, said)) <= 100
    rows = [line.split() for line in said if line.startswith(("111", "222", "333"))]
    assert [(row[0][:3], row[4], row[6]) for row in rows] == [
        ("111", "0.875", "0.500"), ("222", "0.875", "0.500"), ("333", "0.500", "0.500")
    ]  # fmt: skip


def test_a_regression_fails_the_command_where_that_is_asked_for(files: list[str]) -> None:
    assert main(["history", *files, "--fail-on-regression"]) == 1


def test_the_page_draws_every_series_and_needs_nothing_else(files: list[str], tmp_path: Path) -> None:
    out = tmp_path / "history.html"
    assert main(["history", *files, "--html", str(out)]) == 0
    text = out.read_text("utf-8")
    assert text.count("<svg") == 3  # accuracy, bytes, time per step
    assert 'class="mark s0 changed"' in text
    assert "http" not in text.replace("http-equiv", "")


def test_what_names_say_stays_text() -> None:
    evil = [
        replace(one, header=replace(one.header, branch="<script>alert(1)</script>"))
        for one in (night(1, 2), night(2, 8))
    ]
    assert "<script>alert" not in page(series(evil), {})
