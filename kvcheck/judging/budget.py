"""What a method may cost, and the gate: budget + baselines + statistics -> verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from kvcheck.core.errors import MissingBaseline, SpecError, did_you_mean
from kvcheck.core.formats import Json
from kvcheck.core.front import command, option
from kvcheck.core.record import CaseId, CaseRecord, LatencyRecord, Verdict
from kvcheck.core.settings import AGAINST
from kvcheck.core.spec import read_pair, write_value
from kvcheck.judging.informative import left_out, why_not_here
from kvcheck.judging.pairing import expect_contexts, pair, record_command
from kvcheck.judging.questions import (
    DriftRule,
    drop_interval,
    expect_drift,
    judge_bytes,
    judge_drop,
    judge_latency,
    judge_own_drift,
    judge_regression,
)

__all__ = [
    "AGAINST",
    "Budget",
    "case_alpha",
    "expect_records",
    "judge",
    "sequential",
]

CASES = 0.2
"""Share of alpha for the cases of a method; the rest is for all of them together (kvcheck/judging/pooled.py)."""
_RANGES = {
    "drop": (0.0, 100.0, "points of accuracy"),
    "bytes": (0.0, math.inf, "a share of fp16's KV bytes"),
    "ttft": (0.0, math.inf, "a ratio to fp16's time to first token"),
    "tpot": (0.0, math.inf, "a ratio to fp16's time per output token"),
    "nll": (0.0, math.inf, "nats per token"),
    "agree": (0.0, 1.0, "a share of tokens"),
    "kl": (0.0, math.inf, "nats"),
}
_ABOVE_ZERO = ("bytes", "ttft", "tpot")
_DRIFT = ("nll", "agree", "kl")


@dataclass(frozen=True)
class Budget:
    """What a method may cost against fp16; None is not gated.

    drop: points of accuracy lost. bytes: share of fp16's KV bytes. ttft, tpot: ratio to fp16's latency.
    nll: increase of the reference answers' negative log-likelihood, nats per token. agree: least share of answer
    tokens with fp16's top-1 token. kl: mean KL divergence from fp16, nats.
    """

    drop: float | None = 2.0
    bytes: float | None = None
    ttft: float | None = None
    tpot: float | None = None
    nll: float | None = None
    agree: float | None = None
    kl: float | None = None

    def __post_init__(self) -> None:
        for name, (low, high, unit) in _RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise SpecError(f"budget: {name}={value} is not a number", f"{name} is {unit}, for example {name}=1")
            if not low <= value <= high or not math.isfinite(value) or (name in _ABOVE_ZERO and value == 0):
                limits = (
                    f"above {low:g}" if name in _ABOVE_ZERO else f"from {low:g} to {high:g}".replace("to inf", "up")
                )
                raise SpecError(f"budget: {name}={value:g} is out of range", f"{name} is {unit}, {limits}")
            object.__setattr__(self, name, float(value))

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read "drop=2,bytes=0.30,ttft=1.2". Raises SpecError for unknown names and values out of range.

        >>> Budget.parse("drop=5,bytes=0.3").bytes
        0.3
        """
        known = [field.name for field in fields(cls)]
        values: dict[str, Json] = {}
        for part in text.split(","):
            name, value = read_pair(part, text)
            if name not in known:
                raise SpecError(f"unknown budget {name!r} in {text!r}", did_you_mean(name, known))
            if name in values:
                raise SpecError(f"the budget {name!r} is given twice in {text!r}", "keep one of the two")
            values[name] = value
        return cls(**values)

    def __str__(self) -> str:
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return (
            ",".join(f"{name}={value:g}" for name, value in given if value is not None) or f"drop={write_value(None)}"
        )


def case_alpha(alpha: float, cells: int) -> float:
    """The error rate of one case so that `cells` cases fail a harmless method with probability <= CASES * alpha.

    Bonferroni, because it is fixed before anything runs: every test item fails on its own data, on its own worker,
    with -x, --lf and -k, without having seen the others. (Holm's method would need all p-values first; what is judged
    together at the end has them, and uses it.) Raises SpecError for an alpha outside (0, 0.5].
    """
    if not 0 < alpha <= 0.5:
        raise SpecError(
            f"alpha={alpha} is out of range", f"{option('alpha')} is the chance of a false alarm, for example 0.05"
        )
    return alpha * CASES / max(1, cells)


def judge(
    record: CaseRecord,
    fp16: CaseRecord | None,
    own: CaseRecord | None,
    budget: Budget,
    alpha: float = 0.05,
    against: str = "both",
    rule: DriftRule | None = None,
    why: str | None = None,
) -> tuple[Verdict, ...]:
    """All verdicts on one case. alpha: the error rate of this case (see case_alpha).

    fp16 and own: the stored records of the full cache and of the method itself. against: "fp16" asks the budget
    question, "self" the regression question, "both" both. Without a record of its own the method is judged against
    fp16, and the verdict says so. Where scores are asked both questions, each has half of alpha.
    Where the case cannot show a loss of accuracy (informative.py), one verdict says so in the place of those on scores;
    why: it cannot, by default what fp16's record says.

    Raises MissingBaseline without the fp16 record that is needed, NotComparable when prompts, model or setting
    differ, MethodFailed for a record without samples, with NaN, or without a number that the budget asks for.
    """
    if against not in AGAINST:
        raise SpecError(f"unknown {option('against')} {against!r}", did_you_mean(against, AGAINST))
    verdicts: list[Verdict] = []
    missing = own is None and against != "fp16"
    why = why_not_here(record, fp16) if why is None else why
    rule = rule or DriftRule()
    alpha = _of_each(alpha, fp16, own, budget, against)
    if against != "self" or own is None:
        verdicts += _against_fp16(record, fp16, budget, alpha, missing, why)
    if own is not None and against != "fp16":
        verdicts.append((judge_own_drift if why else judge_regression)(record, own, alpha, rule))
    if why and (own is not None or budget.drop is not None):
        verdicts.insert(0, left_out(record, why))
    bytes_verdict = judge_bytes(record, own if against != "fp16" else None, budget.bytes)
    verdicts += [bytes_verdict] if bytes_verdict is not None else []
    return (*verdicts, *judge_ratios(record.latency, budget))


def judge_ratios(latency: Iterable[LatencyRecord], budget: Budget) -> tuple[Verdict, ...]:
    """Verdicts on the ratios to fp16's latency that have a limit."""
    limits = {"ttft": budget.ttft, "tpot": budget.tpot}
    found = ((one, limits.get(one.what)) for one in latency)
    return tuple(judge_latency(one, limit) for one, limit in found if limit is not None)


def expect_records(
    case: CaseId, fp16: CaseRecord | None, own: CaseRecord | None, budget: Budget, against: str = "both"
) -> None:
    """Raise MissingBaseline where `judge` would, which can be known before anything is measured."""
    _expect_fp16(case, fp16, own, budget, against)
    if own is not None and against != "fp16":
        expect_contexts(case, own, own.method)
    if fp16 is not None and (against != "self" or own is None):
        expect_contexts(case, fp16, "fp16")


def _expect_fp16(
    case: CaseId, fp16: CaseRecord | None, own: CaseRecord | None, budget: Budget, against: str = "both"
) -> None:
    asked = [name for name in ("drop", *_DRIFT) if getattr(budget, name) is not None]
    if fp16 is None and asked and (against != "self" or own is None):
        raise MissingBaseline(f"no fp16 record for {case} on this model", f"record it: {command('fp16', record='new')}")


def _against_fp16(
    record: CaseRecord, fp16: CaseRecord | None, budget: Budget, alpha: float, missing: bool, why: str
) -> list[Verdict]:
    _expect_fp16(record.case, fp16, None, budget)
    if fp16 is None:
        return []
    for name in _DRIFT:
        if getattr(budget, name) is not None:
            expect_drift(record, fp16, name)
    verdicts = []
    if budget.drop is not None and why:
        pair(record, fp16, "fp16")  # what does not fit is refused all the same
    elif budget.drop is not None:
        verdict = judge_drop(record, fp16, budget.drop, alpha)
        if missing:
            note = f"{record.method} has no record of its own; to write one: {record_command(record)}"
            verdict = replace(verdict, reason=f"{verdict.reason}; {note}")
        verdicts.append(verdict)
    return verdicts


def _of_each(alpha: float, fp16: CaseRecord | None, own: CaseRecord | None, budget: Budget, against: str) -> float:
    """The level of each question about scores: a case that is held to fp16 and to its own record is asked two."""
    both = against == "both" and own is not None and fp16 is not None and budget.drop is not None
    return alpha / 2 if both else alpha


def sequential(
    so_far: CaseRecord,
    fp16: CaseRecord | None,
    own: CaseRecord | None,
    budget: Budget,
    alpha: float = 0.05,
    against: str = "both",
) -> bool:
    """Whether the case may stop after this block: that it loses too much is certain.

    A certain pass goes on: its contexts are part of the run, which has more to ask. Anytime-valid: it may be asked
    after every block, and `judge` on the stopped record gives the same answer.
    """
    if not so_far.samples or why_not_here(so_far, fp16):
        return False
    limits, alpha = [], _of_each(alpha, fp16, own, budget, against)
    if own is not None and against != "fp16":
        limits.append((own, so_far.method, alpha / 2, DriftRule().points))
    if fp16 is not None and budget.drop is not None and (against != "self" or own is None):
        limits.append((fp16, "fp16", alpha, budget.drop))
    return any(
        100 * drop_interval(so_far, other, pair(so_far, other, whose), level)[0] > limit
        for other, whose, level, limit in limits
    )
