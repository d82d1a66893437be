"""A verdict in words ends in what to type."""

from __future__ import annotations

from building import fp16, memory, record

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


def test_a_regression_by_drift_says_so_first() -> None:
    now, then = record([1.0] * 8, nll=2.5), record([1.0] * 8, nll=0.5)
    (one, *_) = judge(now, None, then, Budget(), against="self")
    first = explain(one, now).splitlines()[1]
    assert first.startswith("  regression by drift: 8 contexts worse, 0 better, 8 broken, +2.000 nats per token")
    assert "(accuracy drop 0.0 points" in first
    assert first.endswith("not significant)   FAIL")


def test_bytes_that_changed_stand_beside_those_that_were_recorded() -> None:
    now, then = record([1.0] * 8, held=memory(250)), record([1.0] * 8, held=memory(500))
    found = [one for one in judge(now, None, then, Budget(), against="self") if one.question == "bytes"]
    assert "KV bytes changed: 0.5 of fp16's recorded, 0.25 now   FAIL" in explain(found[0], now)
