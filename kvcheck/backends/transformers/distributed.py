"""The engine of several processes, under torchrun: the first one runs pytest and says what all of them do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

from kvcheck.backends.base import Backend, Engine, Timer
from kvcheck.backends.transformers.session import Session
from kvcheck.core.record import CaseId, CaseRecord, LatencyRecord, MemoryRecord
from kvcheck.core.settings import Settings
from kvcheck.models.parallel import Order, Team, team
from kvcheck.runner.case import OnBlock, Progress, Runner

T = TypeVar("T")
Limit = Callable[[float], AbstractContextManager[None]]
"""Gives a block of code some seconds; see kvcheck/plugin/timelimit.py."""


def open_engine(settings: Settings) -> Backend | Engine:
    """What is under test: one model in this process, or shared out over those of torchrun."""
    found = team()
    return Session.open(settings) if found is None else DistributedBackend(found, settings)


def _runner(settings: Settings) -> Runner:
    """What each process runs cases with."""
    return Runner(Session.open(settings), settings)


class DistributedBackend:
    """What the first process has in place of a Runner: each call is done by all processes, and answered by this one.

    The others see no baselines: whether a case may stop is decided here.
    """

    def __init__(self, found: Team, settings: Settings) -> None:
        self.team = found
        self.runner = self._all(("open", (settings,)), partial(_runner, settings))

    def _all(self, order: Order, work: Callable[[], T]) -> T:
        if not self.team.lost:  # else the others are gone, and `together` says why
            self.team.order(order)
        return self.team.together(work)

    @property
    def model_name(self) -> str:
        """What the user typed."""
        return self.runner.model_name

    @property
    def fingerprint(self) -> str:
        """Identifies configuration, weights and tokenizer."""
        return self.runner.fingerprint

    def run_case(
        self, case: CaseId, method_spec: str, on_block: OnBlock | None = None, progress: Progress | None = None
    ) -> CaseRecord:
        """As Runner.run_case. Raises what the first process that fails raises."""
        work = partial(self.runner.run_case, case, method_spec, first_decides(self.team, on_block), progress)
        return self._all(("run_case", (case, method_spec)), work)

    def measure_latency(self, method_spec: str, length: int, timer: Timer | None = None) -> tuple[LatencyRecord, ...]:
        """As Runner.measure_latency: the seconds of this process, which waits for the others in every layer."""
        work = partial(self.runner.measure_latency, method_spec, length, None if timer is None else _counted(timer))
        return self._all(("measure_latency", (method_spec, length)), work)

    def measure_memory(self, method_spec: str, length: int) -> MemoryRecord:
        """As Runner.measure_memory: bytes of all processes."""
        work = partial(self.runner.measure_memory, method_spec, length)
        return self._all(("measure_memory", (method_spec, length)), work)


def first_decides(found: Team, on_block: OnBlock | None = None) -> OnBlock:
    """Whether the case may end after a block: of several processes, the first one says so."""

    def ends(record: CaseRecord) -> bool:
        return bool(found.gather(on_block is not None and on_block(record))[0])

    return ends


def _counted(timer: Timer) -> Timer:
    """A timer that runs its target as often as the other processes run theirs, which have no timer.

    pytest-benchmark runs it only once where benchmarks are switched off, and once more for a profiler.
    """

    def timed(target: Callable[[], object], *, rounds: int, iterations: int, warmup_rounds: int) -> None:
        left = warmup_rounds + rounds

        def once() -> None:
            nonlocal left
            if left:
                left -= 1
                target()

        timer(once, rounds=rounds, iterations=iterations, warmup_rounds=warmup_rounds)
        while left:
            once()

    return timed


def follow(found: Team, limit: Limit) -> None:
    """Do what the first process says until it has no more orders. Failures are its to report."""
    runner: Runner | None = None
    settings = Settings()
    while (order := found.order()) is not None:
        name, args = order
        try:
            with limit(settings.timeout):
                if name == "open":
                    settings = args[0]
                    runner = found.together(partial(_runner, settings))
                else:
                    args = (*args, first_decides(found)) if name == "run_case" else args
                    found.together(partial(getattr(runner, name), *args))
        except KeyboardInterrupt:
            raise
        except BaseException:
            continue
