"""A verdict in words ends in what to type."""

from __future__ import annotations

from building import fp16, record

from kvcheck.core.record import CaseRecord
from kvcheck.judging.budget import Budget, judge
from kvcheck.judging.explain import explain


def lossy(lost: int) -> CaseRecord:
    return record([0.0] * lost + [1.0] * (16 - lost))


def test_a_failed_budget_ends_in_the_command_that_accepts_it() -> None:
    mine = lossy(12)
    text = explain(judge(mine, fp16(), None, Budget())[0], mine, "fp16.txt", alpha=0.05)
    assert text.splitlines()[-1].endswith("pytest --kv-method=snapkv --kv-budget=drop=75")


def test_a_regression_ends_in_recording() -> None:
    mine = lossy(12)
    text = explain(judge(mine, None, lossy(2), Budget(), against="self")[0], mine)
    assert text.endswith("pytest --kv-method=snapkv --kv-record=changed")


def test_it_says_what_was_lost_on_which_prompts() -> None:
    mine = lossy(12)
    text = explain(judge(mine, fp16(), None, Budget())[0], mine)
    assert "on the same 16 prompts, one by one: 12 lost, 0 won, 4 unchanged" in text


def test_inconclusive_asks_for_more_samples() -> None:
    mine = lossy(1)
    text = explain(judge(mine, fp16(), None, Budget())[0], mine)
    assert text.endswith("--kv-tasks=kv --kv-n=64")
