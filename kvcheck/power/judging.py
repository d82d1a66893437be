"""Judges simulated records as a run does: a look after every block, each case, then all cases together.

The judges are those of the gate: `kvcheck.judging.budget.judge` and `kvcheck.judging.pooled.judge_pooled`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from kvcheck.core.record import CaseRecord, Verdict
from kvcheck.judging import pairing, stats
from kvcheck.judging.budget import Budget, case_alpha, judge, sequential
from kvcheck.judging.pooled import Compared, judge_pooled
from kvcheck.judging.stats import graded

Result = TypeVar("Result")
BLOCK = 4
"""Contexts between two looks, as in kvcheck/backends/transformers/work.py (CONTEXTS), which imports torch."""
ALPHA = 0.05
"""The chance that a run accuses a harmless method, as --kv-alpha sets it by default."""

_REMEMBERED = ("bootstrap_interval", "confidence_sequence", "binary_sequence", "sign_flip")
_MOST = 200_000
_CHECKED = 2000
"""Records that are known to be sound: each is paired some seven times."""
_WEIGHTS = 40
"""Sets of bootstrap weights that a simulation keeps: one for every number of contexts and of draws (100 MB or less)."""


@dataclass(frozen=True)
class Judged:
    """Verdicts of a run: by case, and by scope on all cases together; of these perhaps the failures alone."""

    cases: dict[str, tuple[Verdict, ...]]
    pooled: dict[str, tuple[Verdict, ...]]

    @property
    def failed(self) -> tuple[tuple[str, str], ...]:
        """(scope or case, question) of everything that fails."""
        every = [*self.pooled.items(), *self.cases.items()]
        return tuple((name, one.question) for name, found in every for one in found if one.outcome == "fail")


Judge = Callable[[Sequence[Compared], Budget, float], Judged]


def as_a_run_does(trials: Sequence[Compared], budget: Budget, alpha: float = ALPHA) -> Judged:
    """The verdicts on a run. A method with a record of its own is judged against that alone, as the gate does."""
    level = case_alpha(alpha, len(trials))
    cases, measured = {}, []
    for trial in trials:
        asked = replace(budget, drop=None) if trial.own is not None else budget
        record = stopped(trial, asked, level)
        measured.append(replace(trial, record=record))
        cases[record.case.key] = judge(record, trial.fp16, trial.own, asked, level)
    return Judged(cases, judge_pooled(measured, budget, alpha, failures=True))


def together(trials: Sequence[Compared], budget: Budget, alpha: float = ALPHA) -> Judged:
    """All cases together alone, for what is asked of them only."""
    return Judged({}, judge_pooled(trials, budget, alpha))


def failing_together(trials: Sequence[Compared], budget: Budget, alpha: float = ALPHA) -> Judged:
    """What fails of all cases together."""
    return Judged({}, judge_pooled(trials, budget, alpha, failures=True))


def stopped(trial: Compared, budget: Budget, level: float) -> CaseRecord:
    """The record of a case that ends where a run would stop it.

    Left out: the look after the last block, which cannot stop anything any more.
    """
    for seen in range(BLOCK, len(trial.record.samples), BLOCK):
        part = replace(trial.record, samples=trial.record.samples[:seen], stopped="verdict clear")
        if sequential(part, trial.fp16, trial.own, budget, level):
            return part
    return trial.record


@contextmanager
def remembering() -> Iterator[None]:
    """While it lasts, the seeded statistics give a result that they gave before for exactly the same arguments.

    They are pure functions, so nothing but time changes. questions.py finds them as attributes of the package.
    """
    plain = {name: getattr(stats, name) for name in _REMEMBERED}
    weights, check = graded._weights, pairing.check_record
    try:
        for name, function in plain.items():
            setattr(stats, name, _remembered(function))
        pairing.check_record = _once(check)
        graded._weights = lru_cache(_WEIGHTS)(lambda *which: tuple(graded._draw_weights(*which)))
        yield
    finally:
        graded._weights, pairing.check_record = weights, check
        for name, function in plain.items():
            setattr(stats, name, function)


def _once(check: Callable[..., None]) -> Callable[..., None]:
    """check_record, once for each of the last records: they do not change."""
    known: dict[int, CaseRecord] = {}

    def call(record: CaseRecord, *, whose: str = "") -> None:
        if known.get(id(record)) is not record:
            check(record, whose=whose)
            if len(known) >= _CHECKED:
                known.clear()
            known[id(record)] = record

    return call


def _remembered(function: Callable[..., Result]) -> Callable[..., Result]:
    known: dict[Hashable, Result] = {}

    def call(*arguments: object, **named: object) -> Result:
        key = (*(tuple(one) if isinstance(one, list) else one for one in arguments), *sorted(named.items()))
        if key not in known:
            if len(known) >= _MOST:
                known.clear()
            known[key] = function(*arguments, **named)
        return known[key]

    return call
