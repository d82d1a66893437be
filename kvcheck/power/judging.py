"""Judges a simulated record as a run does: looks after every block of contexts, then `kvcheck.judging.budget.judge`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from kvcheck.core.record import CaseRecord, Verdict
from kvcheck.judging import stats
from kvcheck.judging.budget import Budget, judge, sequential

Result = TypeVar("Result")
BLOCK = 4
"""Contexts between two looks, as in kvcheck/backends/transformers/work.py (CONTEXTS), which imports torch."""

_REMEMBERED = ("bootstrap_interval", "confidence_sequence", "binary_sequence", "sign_flip")
_MOST = 200_000


@dataclass(frozen=True)
class Trial:
    """One case of one method, ready to be judged. own is None where the method has no record of its own."""

    record: CaseRecord
    fp16: CaseRecord | None
    own: CaseRecord | None
    budget: Budget
    alpha: float
    against: str = "both"


Judge = Callable[[Trial], tuple[Verdict, ...]]


def as_a_run_does(trial: Trial) -> tuple[Verdict, ...]:
    """The verdicts on a case that stops where a run would stop it.

    Left out: the look after the last block, which cannot stop anything any more.
    """
    record = trial.record
    for seen in range(BLOCK, len(record.samples), BLOCK):
        part = replace(record, samples=record.samples[:seen], stopped="verdict clear")
        if sequential(part, trial.fp16, trial.own, trial.budget, trial.alpha, trial.against):
            record = part
            break
    return judge(record, trial.fp16, trial.own, trial.budget, trial.alpha, trial.against)


def failures(verdicts: tuple[Verdict, ...]) -> tuple[str, ...]:
    """The questions that a case failed."""
    return tuple(one.question for one in verdicts if one.outcome == "fail")


@contextmanager
def remembering() -> Iterator[None]:
    """While it lasts, the seeded statistics give a result that they gave before for exactly the same arguments.

    They are pure functions, so nothing but time changes. questions.py finds them as attributes of the package.
    """
    plain = {name: getattr(stats, name) for name in _REMEMBERED}
    try:
        for name, function in plain.items():
            setattr(stats, name, _remembered(function))
        yield
    finally:
        for name, function in plain.items():
            setattr(stats, name, function)


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
