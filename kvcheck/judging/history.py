"""Runs one after the other: in which of them did a method change, judged as `kvcheck compare` judges two of them.

Each run is held against the last one in which something changed, not against the one before it: steps that are too
small to be seen one by one add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kvcheck.core.errors import SpecError
from kvcheck.core.record import AS_RECORDED, RUN, LatencyRecord, Run, Verdict, is_scope
from kvcheck.judging.compare import LATENCY, Comparison, compare_runs

FIRST, SAME, MOVED, WORSE, BETTER, APART = "first", "same", "not shown", "worse", "better", "not comparable"
"""What a run says of a method against an earlier one. MOVED: something differs, and no change is shown."""


@dataclass(frozen=True)
class Point:
    """A method in one run. since: the place of the run that it was held against.

    shown: (scope, verdict) of what changed against that: of the whole run, else of parts of it, else of cases. timed:
    (before, now) of a latency that changed. why: what was not compared.
    """

    run: Run
    change: str
    since: int
    shown: tuple[tuple[str, Verdict], ...] = ()
    timed: tuple[LatencyRecord, LatencyRecord] | None = None
    why: str = ""


@dataclass(frozen=True)
class Series:
    """A method in all runs that have it, the oldest first."""

    method: str
    points: tuple[Point, ...]

    @property
    def changes(self) -> list[int]:
        """Places of the runs in which it got worse or better."""
        return [at for at, one in enumerate(self.points) if one.change in (WORSE, BETTER)]


def ordered(runs: Iterable[Run]) -> list[Run]:
    """By the time that they began, where all of them say it; else as they are given."""
    found = list(runs)
    return sorted(found, key=lambda run: run.header.time) if all(run.header.time for run in found) else found


def series(runs: Sequence[Run], alpha: float = 0.05) -> list[Series]:
    """Every method with its changes. Raises SpecError for fewer than two runs, and for runs of several models."""
    models = {run.header.model: run.header.model_name for run in runs if run.header.model}
    if len(runs) < 2:
        raise SpecError("a history takes two runs or more", "kvcheck history monday.json tuesday.json")
    if len(models) > 1:
        named = ", ".join(f"{name} ({digest})" for digest, name in models.items())
        raise SpecError(f"the runs are of different models: {named}", "one history for each model")
    every = dict.fromkeys(one.method for run in runs for one in run.cases)
    methods = [name for name in every if name != "fp16"] or list(every)  # fp16 beside others is their reference
    return [Series(method, tuple(_points(runs, method, alpha))) for method in methods]


def _points(runs: Sequence[Run], method: str, alpha: float) -> Iterable[Point]:
    mine = [run for run in runs if any(one.method == method for one in run.cases)]
    since = 0
    for at, run in enumerate(mine):
        point = Point(run, FIRST, since) if at == 0 else _compared(mine[since], run, method, since, alpha)
        if point.change in (WORSE, BETTER):
            since = at
        yield point


def _compared(before: Run, after: Run, method: str, since: int, alpha: float) -> Point:
    """What the method does in the second run, held against the first. Worse in anything is worse."""
    then, now = _only(before, method), _only(after, method)
    found = compare_runs(then, now, alpha=alpha)
    if not any(found.run.verdicts.values()):
        return Point(after, APART, since, why=next(iter(found.run.failures.values()), "they have no case in common"))
    left = f"{len(found.run.failures)} cases were not compared" if found.run.failures else ""
    lost, timed = _failing(found), _timed(then, now)
    held = [(name, one) for name, one in lost if one.question == "bytes"]
    more = [pair for pair in held if pair[1].value > pair[1].limit]
    slower = timed is not None and timed[1].ratio > timed[0].ratio
    scores = [pair for pair in lost if pair[1].question != "bytes"]
    gained = [(name, _turned(one)) for name, one in _failing(compare_runs(now, then, alpha=alpha))
              if one.question != "bytes"]  # fmt: skip
    if scores or more or slower:
        return Point(after, WORSE, since, tuple(scores + gained + held), timed, left)
    if gained or held or timed is not None:
        return Point(after, BETTER, since, tuple(gained + held), timed, left)
    own = [one for verdicts in found.run.verdicts.values() for one in verdicts if one.question == "regression"]
    return Point(after, SAME if own and all(one.reason == AS_RECORDED for one in own) else MOVED, since, why=left)


def _only(run: Run, method: str) -> Run:
    """The method's part of a run, and fp16 as its reference."""
    return replace(run, cases=tuple(one for one in run.cases if one.method in (method, "fp16")), properties=())


def _failing(found: Comparison) -> list[tuple[str, Verdict]]:
    """(scope, verdict) of what fails: of the whole run, else of parts of it, else of cases."""
    every = [(name, one) for name, verdicts in found.run.verdicts.items() for one in verdicts if one.outcome == "fail"]
    kinds: list[list[tuple[str, Verdict]]] = [[], [], []]
    for name, one in every:
        scope = name.partition("|")[0]
        kinds[0 if scope == RUN else 1 if is_scope(scope) else 2].append((scope, one))
    return next((kind for kind in kinds if kind), [])


def _turned(verdict: Verdict) -> Verdict:
    """A loss of the first against the second, as what the second gains."""
    return replace(verdict, value=-verdict.value, low=-verdict.high, high=-verdict.low)


def _timed(before: Run, after: Run) -> tuple[LatencyRecord, LatencyRecord] | None:
    """A latency whose ratio to fp16 of the same session has left its interval, at the longest length of both."""
    for what in LATENCY:
        both = [{one.length: one for case in run.cases for one in case.latency if one.what == what}
                for run in (before, after)]  # fmt: skip
        shared = max(both[0].keys() & both[1].keys(), default=None)
        if shared is None:
            continue
        then, now = both[0][shared], both[1][shared]
        if now.low > then.high or now.high < then.low:
            return then, now
    return None
