"""Whole simulated runs: a method against itself, and a method that truly lost something, over all cases."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from kvcheck.core.errors import SpecError
from kvcheck.judging.budget import Budget
from kvcheck.judging.pooled import Compared
from kvcheck.power.judging import ALPHA, Judge, Judged, as_a_run_does, remembering
from kvcheck.power.losses import Loss
from kvcheck.power.noise import ANOTHER_MACHINE, Noise
from kvcheck.power.recorded import Recorded
from kvcheck.power.resample import draw

Result = TypeVar("Result")
CHUNK = 10


@dataclass(frozen=True)
class Plan:
    """runs: simulated whole runs of a method against itself; how often the rest is simulated follows from it."""

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
    """A kind of run.

    own: the method has a record of its own and is judged against that; else against fp16, by the budget. nll: it is
    measured. points: of accuracy that the loss takes in its scope, where its share is not given. scopes: the loss
    hits one of them, in turn. methods: those that take turns, all by default. n: contexts per case, where it is not
    that of the profile. stream: keeps the random numbers of one kind apart from those of another.
    """

    noise: Noise = ANOTHER_MACHINE
    own: bool = True
    nll: bool = True
    loss: Loss = field(default_factory=Loss)
    points: float = 0.0
    scopes: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    quick: bool = False
    budget: Budget = field(default_factory=Budget)
    n: int | None = None
    stream: int = 0

    def source(self, recorded: Recorded) -> Recorded:
        """What is drawn from."""
        found = recorded if self.nll else recorded.scores_alone
        return found.quick if self.quick else found

    def method(self, recorded: Recorded, run: int) -> str:
        """Whose turn it is."""
        names = self.methods or recorded.methods
        return names[run % len(names)]

    def lost(self, recorded: Recorded, run: int) -> Loss:
        """What the method loses in run number `run`."""
        loss, method = self.loss, self.method(recorded, run)
        if self.scopes:
            turn = run + run // len(self.methods or recorded.methods)  # not always the same method with the same scope
            loss = replace(loss, scope=self.scopes[turn % len(self.scopes)])
        if self.points:
            rises = recorded.nll_rises if self.nll else ()
            loss = loss.taking(self.points, recorded.accuracy(method, loss.scope), rises)
        return loss


@dataclass(frozen=True)
class Outcome:
    """What one run came to."""

    run: int
    method: str
    scope: str
    judged: Judged

    @property
    def failed(self) -> tuple[tuple[str, str], ...]:
        """(scope or case, question) of every failure."""
        return self.judged.failed


def trials(recorded: Recorded, setup: Setup, run: int, seed: int) -> list[Compared]:
    """The records of run number `run`; the random numbers depend on nothing but seed, kind and number."""
    rng = np.random.default_rng([seed, setup.stream, run])
    truth, fp16 = draw(recorded, setup.method(recorded, run), rng, setup.n)
    then = [setup.noise.apply(one, rng) for one in (truth if setup.own else fp16)]
    now = setup.lost(recorded, run).apply([setup.noise.apply(one, rng) for one in truth], rng)
    if setup.own:  # fp16 says which cases can show a loss at all
        return [Compared(*each, drop=False) for each in zip(now, fp16, then, strict=True)]
    return [Compared(a, b, None) for a, b in zip(now, then, strict=True)]


def simulate(recorded: Recorded, setup: Setup, run: int, seed: int, judge: Judge = as_a_run_does) -> Outcome:
    """One run, judged."""
    recorded = setup.source(recorded)
    found = judge(trials(recorded, setup, run, seed), setup.budget, ALPHA)
    return Outcome(run, setup.method(recorded, run), setup.lost(recorded, run).scope, found)


def simulate_all(
    recorded: Recorded,
    kinds: Sequence[tuple[Setup, int]],
    seed: int = 0,
    *,
    jobs: int = 1,
    judge: Judge = as_a_run_does,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Outcome]]:
    """Runs 0 to count - 1 of every kind, the same with any number of processes. tick: how many of how many are done."""
    chunks = [
        (at, setup, range(start, min(start + CHUNK, count)), seed, judge)
        for at, (setup, count) in enumerate(kinds)
        for start in range(0, count, CHUNK)
    ]
    found: list[list[Outcome]] = [[] for _ in kinds]
    for at, part in spread(recorded, _chunk, chunks, jobs):
        found[at] += part
        tick(sum(map(len, found)), sum(count for _, count in kinds))
    return [sorted(one, key=lambda outcome: outcome.run) for one in found]


def _chunk(
    recorded: Recorded, at: int, setup: Setup, numbers: Sequence[int], seed: int, judge: Judge
) -> tuple[int, list[Outcome]]:
    return at, [simulate(recorded, setup, run, seed, judge) for run in numbers]


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

    def runs(self, kinds: Sequence[tuple[Setup, int]], judge: Judge = as_a_run_does) -> list[list[Outcome]]:
        """So many whole runs of every kind."""
        plan = self.plan
        return simulate_all(self.recorded, kinds, plan.seed, jobs=plan.jobs, judge=judge, tick=self.tick)


# -- processes ---------------------------------------------------------------------------------------------------------

_HERE: list[Recorded] = []
_KEPT = ExitStack()
"""What lasts as long as a worker; a context that nobody holds would end at once."""


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
    _KEPT.enter_context(remembering())


def _run(work: Callable[..., Result], arguments: tuple[object, ...]) -> Result:
    return work(_HERE[0], *arguments)
