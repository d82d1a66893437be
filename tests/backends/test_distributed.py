"""What the first of several processes does otherwise than one alone; with processes: tests/plugin/test_torchrun.py."""

from __future__ import annotations

from typing import Any

import pytest

from kvcheck.backends.transformers.distributed import _counted


@pytest.mark.parametrize("runs", [1, 4, 5], ids=["benchmarks off", "as told", "a profiler"])
def test_rounds_are_as_many_as_in_the_other_processes_whatever_the_timer_does(runs: int) -> None:
    done: list[int] = []

    def timer(target: Any, **how: int) -> None:
        for _ in range(runs):
            target()

    _counted(timer)(lambda: done.append(1), rounds=3, iterations=1, warmup_rounds=1)
    assert len(done) == 4
