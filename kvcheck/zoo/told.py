"""Which bugs of the zoo do a model's answers tell from their correct counterparts, by which number, and how soon?

The audit, which refuses many of them before anything is asked, does not look here: what is measured is what a gate
would see of a bug that no audit knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvcheck.backends.transformers.guard import Guard
from kvcheck.backends.transformers.session import Session
from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import CaseId, SampleRecord
from kvcheck.tasks import find
from kvcheck.zoo.base import Bug, bugs

if TYPE_CHECKING:
    from kvcheck.backends.base import Engine

CASES: Mapping[str, tuple[str, int]] = {"completion/prose": ("single", 16), "completion/echo": ("multi_request", 8)}
"""What is asked: in which mode, and of how many contexts."""
METRICS = ("accuracy", "nll", "kl")
LEVEL = 0.01
"""Of the one-sided test: 5 % over the five numbers that two tasks give."""
FEWEST = 3
"""Contexts from which on something is said."""
SAME = 1e-6
"""Nats and shares below which a difference is none: what the order of sums makes."""
UNSEEN: Mapping[str, str] = {
    "attention-sinks-evictable": "lost sinks",
    "keys-quantized-per-vector": "keys per vector",
    "scales-fall-back-to-one": "scales",
    "prefix-store-drops-one-token": "a seam",
    "pending-shift-overwritten": "gaps between positions",
}
"""Bugs of the kinds that `mini` hardly shows by answers, and which kind it is."""


class Silent(Guard):
    """Lets pass what an audit finds; what raises still fails."""

    def fail(self, problems: Sequence[str]) -> None:
        """Say nothing."""


class Unaudited(Session):
    """A session whose methods' claims nobody checks."""

    guards: ClassVar[type[Guard]] = Silent


@dataclass(frozen=True)
class Told:
    """A bug beside its counterpart, by one metric of one task.

    worse: mean over contexts of how much worse the bug is (share of answers, nats). p: of a one-sided paired t-test.
    since: contexts from which on p stays at LEVEL or below; None where it is above it in the end. n: contexts in all.
    failed: what was raised, where there are no answers to compare (the counterpart is not for this model, the bug comes
    to no end); then there is no metric.
    """

    bug: str
    counterpart: str
    task: str
    metric: str = ""
    worse: float = 0.0
    p: float = 1.0
    since: int | None = None
    n: int = 0
    failed: str = ""


def measure(
    engine: Engine, names: Sequence[str], length: int, most: int | None = None, tasks: Sequence[str] = tuple(CASES)
) -> Iterator[Told]:
    """Bugs of these names or families, on these tasks. most: contexts, where fewer than usual are to be fed.

    Raises SpecError for an unknown name.
    """
    known: dict[tuple[str, str], tuple[SampleRecord, ...]] = {}
    for bug in bugs(tuple(names)):
        for task in tasks:
            mode, contexts = CASES[task]
            n = contexts if most is None else min(contexts, most)
            case = CaseId(task, find(task).info.version, mode, length, 0, n)
            yield from _one(engine, bug, case, known)


def _one(
    engine: Engine, bug: Bug, case: CaseId, known: dict[tuple[str, str], tuple[SampleRecord, ...]]
) -> Iterator[Told]:
    """One bug on one case. known: samples of counterparts."""
    key = bug.counterpart, str(case)
    try:
        if key not in known:
            known[key] = engine.run_case(case, bug.counterpart).samples
        faulty = engine.run_case(case, bug.spec).samples
    except KvcheckError as error:
        yield Told(bug.name, bug.counterpart, case.task, failed=str(error).splitlines()[0])
        return
    for metric in METRICS:
        worse = differences(faulty, known[key], metric)
        if worse:
            yield Told(bug.name, bug.counterpart, case.task, metric, *tested(worse), len(worse))


def differences(faulty: Sequence[SampleRecord], correct: Sequence[SampleRecord], metric: str) -> list[float]:
    """By context, how much worse the first is; [] where the task does not measure it."""
    pairs = [(_value(one, metric), _value(other, metric)) for one, other in zip(faulty, correct, strict=True)]
    sign = -1 if metric == "accuracy" else 1
    return [sign * (one - other) for one, other in pairs if one is not None and other is not None]


def _value(sample: SampleRecord, metric: str) -> float | None:
    """A sample's mean over its turns. Nothing is scored where nothing is answered."""
    if metric == "accuracy":
        found = [turn.score for turn in sample.turns if turn.ended is not None]
    else:
        found = [value for turn in sample.turns if (value := getattr(turn, metric)) is not None]
    return sum(found) / len(found) if found else None


def tested(worse: Sequence[float]) -> tuple[float, float, int | None]:
    """(mean, p of all contexts, contexts from which on p stays at LEVEL or below)."""
    by = {count: p_value(worse[:count]) for count in range(min(FEWEST, len(worse)), len(worse) + 1)}
    above = [count for count, p in by.items() if p > LEVEL]
    since = max(above, default=min(by) - 1) + 1
    return sum(worse) / len(worse), by[len(worse)], since if since <= len(worse) else None


def p_value(worse: Sequence[float]) -> float:
    """One-sided, that the mean is above 0: a t-test over contexts. 1 where nothing differs, or too few are there."""
    from scipy.stats import ttest_1samp

    if len(worse) < FEWEST or max(map(abs, worse)) < SAME:
        return 1.0
    if max(worse) == min(worse):
        return 0.0 if worse[0] > 0 else 1.0
    return float(ttest_1samp(worse, 0.0, alternative="greater").pvalue)
