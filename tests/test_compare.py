"""Two runs side by side."""

from __future__ import annotations

from dataclasses import replace

from building import fp16, record, run

from kvcheck.core.record import Run
from kvcheck.judging.compare import Row, compare_runs, regressions


def only(rows: list[Row]) -> Row:
    """The row of the one case; the row of its capability follows."""
    return rows[0]


def test_a_run_equals_itself() -> None:
    one = run(record([1.0] * 8))
    assert {row.outcome for row in compare_runs(one, one)} == {"same"}


def test_a_worse_run_is_worse() -> None:
    row = only(compare_runs(run(record([1.0] * 12)), run(record([0.0] * 10 + [1.0] * 2))))
    assert (row.outcome, row.lost, round(row.drop or 0)) == ("worse", 10, 83)


def test_a_better_run_is_better() -> None:
    assert only(compare_runs(run(record([0.0] * 12)), run(record([1.0] * 12)))).outcome == "better"


def test_one_flip_is_inconclusive() -> None:
    assert only(compare_runs(run(record([1.0] * 12)), run(record([0.0] + [1.0] * 11)))).outcome == "inconclusive"


def test_a_case_that_only_the_first_run_has_is_missing() -> None:
    before = run(record([1.0], task="a"), record([1.0], task="b"))
    rows = compare_runs(before, run(record([1.0], task="a")))
    assert [row.what for row in rows if row.outcome == "missing"] == ["b/v1/single/len=1024/seed=0"]


def test_a_case_that_only_the_second_run_has_is_missing() -> None:
    rows = compare_runs(run(record([1.0], task="a")), run(record([1.0], task="a"), record([1.0], task="b")))
    assert [row.outcome for row in rows if row.what.startswith("b/")] == ["missing"]


def test_other_prompts_are_not_comparable() -> None:
    mine = record([1.0, 1.0])
    other = replace(mine, samples=tuple(replace(one, digest="0" * 12) for one in mine.samples))
    row = only(compare_runs(run(other), run(mine)))
    assert (row.outcome, "other prompts" in row.reason) == ("not comparable", True)


def test_a_run_that_stopped_early_is_compared_on_what_both_have() -> None:
    assert only(compare_runs(run(record([1.0] * 4, n=8)), run(record([1.0] * 8)))).n == 4


def test_two_methods_are_compared_when_each_run_has_one() -> None:
    assert only(compare_runs(run(fp16(8)), run(record([1.0] * 8)))).outcome == "same"


def test_other_bytes_of_the_same_method_are_worse_though_the_scores_are_the_same() -> None:
    before = record([1.0] * 8)
    assert before.memory is not None
    for kv_bytes in (before.memory.kv_bytes + 1, before.memory.kv_bytes // 2):
        changed = replace(before, memory=replace(before.memory, kv_bytes=kv_bytes))
        row = only(compare_runs(run(before), run(changed)))
        assert (row.outcome, row.lost) == ("worse", 0)
        assert f"{kv_bytes} bytes" in row.reason
        assert f"{before.memory.kv_bytes}, {before.memory.kept:g} recorded" in row.reason


def test_drift_of_the_same_method_is_worse_though_the_scores_are_the_same() -> None:
    row = only(compare_runs(run(record([1.0] * 12, nll=0.5)), run(record([1.0] * 12, nll=1.5))))
    assert (row.outcome, row.lost) == ("worse", 0)
    assert "drift: 12 contexts worse" in row.reason


def test_bytes_that_are_no_longer_measured_are_not_comparable() -> None:
    row = only(compare_runs(run(record([1.0] * 8)), run(replace(record([1.0] * 8), memory=None))))
    assert row.outcome == "not comparable"


def test_bytes_of_two_methods_are_shown_and_not_held_against_them() -> None:
    assert not only(compare_runs(run(record([1.0] * 8)), run(fp16(8)))).fails


def test_cases_of_a_capability_are_judged_together() -> None:
    before = run(*(record([1.0] * 6, task=task) for task in "abc"))
    after = run(*(record([0.0] * 4 + [1.0] * 2, task=task) for task in "abc"))
    whole = compare_runs(before, after)[-1]
    assert (whole.what, whole.n, whole.outcome) == ("string_retrieval (3 cases)", 18, "worse")


def test_many_cells_are_corrected_for() -> None:
    """Four losses of 24: beyond what numerics may flip in one case alone, nothing in one of twenty."""
    tasks = [f"t{at}" for at in range(20)]
    before = run(*(record([1.0] * 24, task=task) for task in tasks))
    after = run(
        *(
            record([0.0] * (4 if task == "t0" else 0) + [1.0] * (20 if task == "t0" else 24), task=task)
            for task in tasks
        )
    )
    assert only(compare_runs(before, after)).outcome == "inconclusive"


def test_what_fails_a_comparison_includes_what_was_not_compared() -> None:
    before = run(record([1.0] * 12, task="a"), record([1.0], task="gone"))
    after = run(record([0.0] * 12, task="a"))
    assert {row.outcome for row in regressions(compare_runs(before, after))} == {"worse", "missing"}


def test_empty_runs_have_no_rows() -> None:
    empty: Run = run()
    assert compare_runs(empty, empty) == []
