"""Which tests of the gate can fail at all: with so many contexts, at the level that is theirs.

Every context of a run is lost wholly, and its reference answers become as unlikely as can be. What the judges of the
gate do not fail then, they never fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from kvcheck.core.record import ACCURACY, CaseId, CaseRecord, SampleRecord, TurnRecord, prompt_digest
from kvcheck.judging.budget import Budget, case_alpha, judge
from kvcheck.judging.informative import why_not
from kvcheck.judging.pooled import Compared, every_test
from kvcheck.power.judging import ALPHA
from kvcheck.runner.case import NOTHING_ASKED
from kvcheck.tasks import find, profiles

LIMITS = Budget(drop=2.0, nll=0.05, agree=0.95, kl=0.05)
"""A user's limits, each of which is tried by itself."""
PROFILES = tuple(profiles.PROFILES)
QUESTIONS = ("drop", "nll", "agree", "kl")
ENOUGH = 8
"""Contexts per case that are tried first: where they can fail a test, more of them can."""
WORST = 20.0
"""Nats per token."""
NOTHING = ((ACCURACY, NOTHING_ASKED),)
"""What is not measured in a case without scores."""


@dataclass(frozen=True)
class Reach:
    """One test of a profile. level: "case", "task", "capability" or "run"; asked: it is in the gate.

    p: the smallest p-value that its contexts can give or a larger one (ENOUGH), None for a case; allowed: at which it
    fails.
    """

    profile: str
    level: str
    scope: str
    question: str
    n: int
    allowed: float
    p: float | None
    can_fail: bool
    asked: bool


def reach(profile: str) -> Iterator[Reach]:
    """Every test of a profile: of its cases, then of all of them together."""
    cases = profiles.cases(profile)
    level = case_alpha(ALPHA, len(cases))
    for case in cases:
        turns = 1 if case.mode == "single" else 3
        for question, asked in _of_a_case(case.n, turns, level, find(case.task).info.scored).items():
            yield Reach(profile, "case", case.key, question, case.n, level, None, asked, True)
    few = [replace(case, n=min(case.n, ENOUGH)) for case in cases]
    for name in (*QUESTIONS, "lossless", "own"):
        found = list(_together(few, name))
        if not all(one.can_fail for one in found):
            found = list(_together(cases, name))
        yield from (replace(one, profile=profile, n=_contexts(cases, one.scope)) for one in found)


@lru_cache(maxsize=256)
def _of_a_case(n: int, turns: int, level: float, scored: bool) -> dict[str, bool]:
    """By question of `judge`: whether it can fail. scored: its answers are."""
    case = CaseId("kv", 1, "single", 512, 0, n)
    now, then = worst(case, "string_retrieval", turns), best(case, "string_retrieval", turns)
    if not scored:
        now, then = (replace(one, not_measured=NOTHING) for one in (now, then))
        return {one.question: one.outcome == "fail" for one in judge(now, None, then, _only(""), level, "self")[1:]}
    found = {}
    for one in judge(now, replace(then, method="fp16"), None, _only("drop"), level, "fp16"):
        found[one.question] = one.outcome == "fail"
    for question, drifts, loses in (("regression (scores)", False, True), ("regression (drift)", True, False)):
        record = now if loses else _with(then, now, drifts)
        record = record if drifts else _scores(record)
        own = then if drifts else _scores(then)
        found[question] = any(one.outcome == "fail" for one in judge(record, None, own, _only(""), level, "self"))
    return found


def _contexts(cases: list[CaseId], scope: str) -> int:
    """How many lie in a scope."""
    return sum(case.n for case in cases if scope in ("run", f"capability {_capability(case)}", f"task {case.task}"))


def _capability(case: CaseId) -> str:
    return find(case.task).info.capability


def _together(cases: list[CaseId], name: str) -> Iterator[Reach]:
    budget = _only(name)
    run = []
    for case in cases:
        now, then = (of(case, _capability(case), 1) for of in (worst, best))
        why = why_not(then)
        own = Compared(now, None, then, why=why)
        beside = Compared(now, then, None, why=why, lossless=LIMITS.kl if name == "lossless" else None)
        run.append(own if name == "own" else beside)
    for test in every_test(run, budget):
        kind, _, _ = test.scope.partition(" ")
        allowed = ALPHA * test.share
        verdict = test.verdict(True)
        in_the_gate = test.least <= allowed
        yield Reach("", kind, test.scope, verdict.question, verdict.n, allowed, test.p, test.p <= allowed, in_the_gate)


def _only(name: str) -> Budget:
    """One limit of LIMITS."""
    return Budget(**{one: getattr(LIMITS, one) if one == name else None for one in QUESTIONS})


def best(case: CaseId, capability: str, turns: int) -> CaseRecord:
    """Every answer right and likely."""
    return _record(case, capability, TurnRecord(1.0, "yes", nll=0.1, agree=1.0, kl=0.0), turns)


def worst(case: CaseId, capability: str, turns: int) -> CaseRecord:
    """Every answer wrong and unlikely."""
    return _record(case, capability, TurnRecord(0.0, "no", nll=WORST, agree=0.0, kl=WORST), turns)


def _record(case: CaseId, capability: str, turn: TurnRecord, turns: int) -> CaseRecord:
    digest = prompt_digest(case.key)
    samples = tuple(SampleRecord(at, digest, (turn,) * turns) for at in range(case.n))
    missing = () if find(case.task).info.scored else NOTHING
    return CaseRecord(case, "method", "f00d", capability, True, True, 0.0, samples, not_measured=missing)


def _scores(record: CaseRecord) -> CaseRecord:
    """Without nll."""
    samples = (replace(one, turns=tuple(replace(turn, nll=None) for turn in one.turns)) for one in record.samples)
    return replace(record, samples=tuple(samples))


def _with(scores: CaseRecord, nll: CaseRecord, drifts: bool) -> CaseRecord:
    """The scores and answers of one record with the nll of another."""
    if not drifts:
        return scores
    samples = []
    for one, other in zip(scores.samples, nll.samples, strict=True):
        turns = (replace(a, nll=b.nll) for a, b in zip(one.turns, other.turns, strict=True))
        samples.append(replace(one, turns=tuple(turns)))
    return replace(scores, samples=tuple(samples))
