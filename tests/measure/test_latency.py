"""Latency: interleaved rounds, a ratio of medians, a seeded interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvcheck.core.errors import KvcheckError
from kvcheck.core.settings import ROUNDS
from kvcheck.measure import latency


def side(name: str, log: list[str], *seconds: float) -> Callable[[], dict[str, float]]:
    """A side that takes these seconds in turn, and notes when it is run."""
    waiting = list(seconds)

    def once() -> dict[str, float]:
        log.append(name)
        return {"ttft": waiting.pop(0) if len(waiting) > 1 else waiting[0]}

    return once


def test_rounds_alternate_who_goes_first_and_the_first_round_only_warms_up() -> None:
    log: list[str] = []
    (record,) = latency.interleave(512, side("m", log, 99.0, 3.0), side("f", log, 99.0, 2.0))
    assert log[:6] == ["m", "f", "f", "m", "m", "f"]
    assert (record.what, record.length, record.rounds) == ("ttft", 512, ROUNDS)
    assert (record.seconds, record.fp16_seconds, record.ratio, record.low, record.high) == (3.0, 2.0, 1.5, 1.5, 1.5)


def test_one_slow_round_does_not_move_the_ratio() -> None:
    record = latency.summarize("tpot", 512, [1.0] * 8 + [50.0], [1.0] * 9)
    assert record.ratio == 1.0
    assert record.high == 1.0


def test_the_interval_is_seeded_and_holds_the_ratio() -> None:
    own, fp16 = [1.1, 1.3, 1.2, 1.5, 0.9], [1.0, 1.1, 0.9, 1.0, 1.2]
    first, again = (latency.summarize("ttft", 512, own, fp16) for _ in range(2))
    assert first == again
    assert first.ratio == pytest.approx(1.2)
    assert first.low < first.ratio < first.high


def test_a_timer_runs_the_rounds() -> None:
    """As pytest-benchmark's `benchmark.pedantic` does."""
    asked: dict[str, Any] = {}

    def pedantic(target: Callable[[], None], **how: Any) -> None:
        asked.update(how)
        for _ in range(how["warmup_rounds"] + how["rounds"]):
            target()

    (record,) = latency.interleave(512, side("m", [], 2.0), side("f", [], 1.0), pedantic)
    assert asked == {"rounds": ROUNDS, "iterations": 1, "warmup_rounds": latency.WARMUP}
    assert (record.ratio, record.rounds) == (2.0, ROUNDS)


def test_a_timer_that_runs_nothing_is_an_error_and_not_a_pass() -> None:
    with pytest.raises(KvcheckError, match="the timer ran no round"):
        latency.interleave(512, side("m", [], 1.0), side("f", [], 1.0), lambda target, **how: target())


def test_the_stopwatch_gives_the_result_too() -> None:
    seconds, result = latency.stopwatch([torch.device("cpu")], lambda: sum(range(1000)))
    assert seconds > 0
    assert result == 499500


def test_with_pytest_benchmark(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("pytest_benchmark")
    benchmark = request.getfixturevalue("benchmark")
    if benchmark.disabled:
        pytest.skip("pytest-benchmark times nothing here (-n, or --benchmark-disable)")
    (record,) = latency.interleave(512, side("m", [], 2.0), side("f", [], 1.0), benchmark.pedantic)
    assert record.ratio == 2.0
