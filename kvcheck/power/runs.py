"""Whole simulated runs: a method against itself, and a method that truly lost something, over all cases."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from kvcheck.core.errors import SpecError
from kvcheck.core.record import CaseId, context_score
from kvcheck.judging.budget import Budget
from kvcheck.power.judging import Judge, Trial, as_a_run_does, failures, remembering
from kvcheck.power.noise import Loss, Noise
from kvcheck.power.recorded import Recorded
from kvcheck.power.resample import draw

Result = TypeVar("Result")
CHUNK = 10


@dataclass(frozen=True)
class Plan:
    """runs: simulated whole runs of a method against itself on another machine; the rest follows from it."""

    runs: int = 150
    seed: int = 0
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.runs < 20:
            raise SpecError(
                f"--runs={self.runs} is too few to say anything", "take 20 or more: kvcheck power --runs 20"
            )
        if self.seed < 0:
            raise SpecError(f"--seed={self.seed} is below 0", "kvcheck power --seed 0")
        if self.jobs < 1:
            raise SpecError(f"--jobs={self.jobs} is below 1", "kvcheck power --jobs 1")

    def share(self, part: int) -> int:
        """A part of the runs, but at least 20."""
        return max(20, self.runs // part)


@dataclass(frozen=True)
class Setup:
    """A kind of run. points: a true drop of the whole method, None for the method itself; nll: drift is judged too.

    stream: keeps the random numbers of one kind apart from those of another.
    """

    noise: Noise
    points: float | None = None
    nll: bool = True
    level: float = 0.05
    stream: int = 0


@dataclass(frozen=True)
class Outcome:
    """What one run came to: (question, case key) of every failure."""

    run: int
    method: str
    failed: tuple[tuple[str, str], ...]


def simulate(recorded: Recorded, setup: Setup, run: int, seed: int, judge: Judge = as_a_run_does) -> Outcome:
    """Run number `run`: the methods take turns, and the random numbers depend on nothing but seed, kind and number."""
    rng = np.random.default_rng([seed, setup.stream, run])
    method = recorded.methods[run % len(recorded.methods)]
    loss = _loss(recorded, setup, method)
    failed = []
    for case in recorded.cases:
        trial = _trial(recorded, setup, method, case, loss, rng)
        failed += [(question, case.key) for question in failures(judge(trial))]
    return Outcome(run, method, tuple(failed))


def _trial(
    recorded: Recorded, setup: Setup, method: str, case: CaseId, loss: Loss | None, rng: np.random.Generator
) -> Trial:
    truth, fp16 = draw(case, *recorded.pair(method, case), rng)
    own = setup.noise.apply(truth, rng) if setup.noise.both else truth
    record = setup.noise.apply(truth, rng)
    record = record if loss is None else loss.apply(record, rng)
    if method == "fp16":
        fp16 = own  # the stored fp16 record is both
    return Trial(record, fp16, own, Budget(drop=None), recorded.alpha(setup.level))


def _loss(recorded: Recorded, setup: Setup, method: str) -> Loss | None:
    if setup.points is None:
        return None
    return Loss.of(setup.points, accuracy(recorded, method), _rises(recorded) if setup.nll else None)


def accuracy(recorded: Recorded, method: str) -> float:
    """Mean score of all recorded contexts of a method."""
    scores = [context_score(one) for case in recorded.cases for one in recorded.pair(method, case)[0].samples]
    return float(np.mean(scores))


_RISES: dict[int, tuple[float, ...]] = {}


def _rises(recorded: Recorded) -> tuple[float, ...]:
    """Recorded.nll_rises, read once per process."""
    if id(recorded) not in _RISES:
        _RISES[id(recorded)] = recorded.nll_rises()
    return _RISES[id(recorded)]


def simulate_all(
    recorded: Recorded,
    setup: Setup,
    runs: int,
    seed: int = 0,
    *,
    jobs: int = 1,
    judge: Judge = as_a_run_does,
    tick: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """Runs 0 to runs - 1 in order, the same with any number of processes. tick is told how many are done."""
    chunks = [(setup, range(at, min(at + CHUNK, runs)), seed, judge) for at in range(0, runs, CHUNK)]
    found: list[Outcome] = []
    for part in spread(recorded, _chunk, chunks, jobs):
        found += part
        tick(len(found))
    return sorted(found, key=lambda one: one.run)


@dataclass(frozen=True)
class Simulation:
    """What the tables are made from. tick is told how many of how many pieces of work are done."""

    recorded: Recorded
    plan: Plan
    tick: Callable[[int, int], None]

    def each(self, work: Callable[..., Result], arguments: Sequence[tuple[object, ...]]) -> list[Result]:
        """work(recorded, *arguments) for each, in the order in which they are done."""
        found: list[Result] = []
        for one in spread(self.recorded, work, arguments, self.plan.jobs):
            found.append(one)
            self.tick(len(found), len(arguments))
        return found

    def runs(self, kinds: Sequence[tuple[Setup, int]]) -> list[list[Outcome]]:
        """So many whole runs of every kind."""
        total, found = sum(count for _, count in kinds), list[list[Outcome]]()
        for setup, count in kinds:

            def done(part: int, before: int = sum(map(len, found))) -> None:
                self.tick(before + part, total)

            found.append(simulate_all(self.recorded, setup, count, self.plan.seed, jobs=self.plan.jobs, tick=done))
        return found


def _chunk(recorded: Recorded, setup: Setup, numbers: Sequence[int], seed: int, judge: Judge) -> list[Outcome]:
    return [simulate(recorded, setup, run, seed, judge) for run in numbers]


# -- processes ---------------------------------------------------------------------------------------------------------

_HERE: list[Recorded] = []


def spread(
    recorded: Recorded, work: Callable[..., Result], arguments: Sequence[tuple[object, ...]], jobs: int
) -> Iterator[Result]:
    """work(recorded, *arguments) for each, as they come, in this process or in `jobs` of them."""
    if jobs <= 1 or len(arguments) <= 1:
        with remembering():
            for one in arguments:
                yield work(recorded, *one)
        return
    with ProcessPoolExecutor(min(jobs, len(arguments)), initializer=_start, initargs=(recorded,)) as pool:
        for done in as_completed([pool.submit(_run, work, one) for one in arguments]):
            yield done.result()


def _start(recorded: Recorded) -> None:
    """A worker: one thread of arithmetic, and its statistics remembered for as long as it lives."""
    os.environ["OMP_NUM_THREADS"] = "1"
    _HERE[:] = [recorded]
    remembering().__enter__()


def _run(work: Callable[..., Result], arguments: tuple[object, ...]) -> Result:
    return work(_HERE[0], *arguments)
