"""Verdicts over many cases: of a capability and of the whole run.

A case has 4 to 8 contexts, which show a crash or a collapse. What every case loses a little of shows only where all
contexts of a method are put together: paired with a reference's (fp16's, or the method's own record), each with the
same weight, as in the tables. A context that is asked in several modes is one draw (a cluster); contexts of one task
and length are alike (a stratum). Where --kv-n=auto took more contexts of some cases, under further seeds, they weigh
together what those of the first seed did: which cases got more depends on what was seen of them. One method in one run
has one family of pooled tests, and Holm's procedure keeps the chance that any of them accuses a harmless method below
the share of alpha that is set aside for them.

Scores of cases that cannot show a loss of accuracy (informative.py) are left out; what else was measured in them
counts. Where no case can, the run fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from kvcheck.core.record import AS_RECORDED, RUN, CaseId, CaseRecord, Verdict
from kvcheck.judging import informative, stats
from kvcheck.judging.budget import Budget
from kvcheck.judging.pairing import identical
from kvcheck.judging.pools import AGAINST_FP16, LEVEL, Losses, Pool, drops, measured, over_turns
from kvcheck.judging.questions import DriftRule, context_drift

QUESTIONS = {"budget": 0.52, "regression": 0.06, "drift": 0.07, "divergence": 0.1, "lossless": 0.05}
"""Share of alpha for the pooled tests of each question, where all are asked; the rest is that of the cases (CASES)."""
SCOPES = {"run": 0.4, "capability": 0.2, "task": 0.4}
"""How that is split over scopes; the capabilities share theirs alike, as do the tasks."""
IDENTICAL = "identical answers"
"""The reason of a drop where no answer differs."""
COVERED = 0.8
"""Share of a run's uncertainty of which more contexts are taken at a time; the rest costs more than it tells."""
FAILS_AT = LEVEL * QUESTIONS["budget"] * SCOPES["run"]
"""About the level at which a run fails."""


@dataclass(frozen=True)
class Compared:
    """A record with what it is judged against; None for what is not there. drop: whether the loss of accuracy against
    fp16 is asked about. why: the case is not informative (kvcheck/judging/informative.py), its scores are left out.
    lossless: KL from fp16, in nats, that a method which calls itself lossless, or nearly so, may have here
    (kvcheck/judging/limits.py).
    """

    record: CaseRecord
    fp16: CaseRecord | None
    own: CaseRecord | None
    drop: bool = True
    why: str = ""
    lossless: float | None = None


@dataclass(frozen=True)
class Test:
    """One pooled test before the others are known: `verdict` gives its outcome once it is told whether it rejects.

    least: the smallest p-value that so many contexts can give. The verdict draws its interval when it is asked for.
    """

    scope: str
    p: float
    least: float
    question: str
    share: float
    verdict: Callable[[bool], Verdict]


def judge_pooled(
    cases: Sequence[Compared],
    budget: Budget,
    alpha: float,
    rule: DriftRule | None = None,
    looks: int = 1,
    *,
    failures: bool = False,
) -> dict[str, tuple[Verdict, ...]]:
    """Verdicts by scope, RUN first, on all cases of one method that were measured.

    budget: its limits of drop, nll, agree and kl are asked of the cases that have fp16 beside them. alpha: that of the
    method's run. looks: how often it may be asked, each time with more contexts, until the answer is clear: each look
    gets its part of alpha, and its intervals are as much wider. What cannot fail, since there are too few contexts for
    a p-value below its level, takes no part: of the run it is estimated all the same, and passes only by its interval.
    failures: those alone, which spares the intervals of all others.
    Raises NotComparable, MissingBaseline.
    """
    alpha = alpha / looks
    every = list(every_test(cases, budget, rule, LEVEL / looks))
    tests = [test for test in every if test.least <= alpha * test.share]
    adjusted = stats.weighted_holm(
        [test.p for test in tests], [test.share for test in tests], total=sum(QUESTIONS.values())
    )
    found: dict[str, tuple[Verdict, ...]] = {}
    nothing = informative.nothing((one.record, one.fp16, one.why) for one in cases if _asks_scores(one, budget))
    if nothing is not None and not any(_told_by_likelihood(one, budget) for one in cases):
        found[RUN] = (nothing,)
    rejects = {id(test): p <= alpha for test, p in zip(tests, adjusted, strict=True)}
    for test in every:
        if rejects.get(id(test), False) or (not failures and (id(test) in rejects or test.scope == RUN)):
            found[test.scope] = (*found.get(test.scope, ()), test.verdict(rejects.get(id(test), False)))
    return found


def _asks_scores(one: Compared, budget: Budget) -> bool:
    return one.own is not None or (one.fp16 is not None and one.drop and budget.drop is not None)


def _told_by_likelihood(one: Compared, budget: Budget) -> bool:
    """Whether a case that has no scores is held to something all the same: its own record, or a limit on its drift."""
    limited = any(getattr(budget, name) is not None for name in AGAINST_FP16 if name != "drop")
    return not one.record.scored and (one.own is not None or (one.fp16 is not None and limited))


def every_test(
    cases: Sequence[Compared], budget: Budget, rule: DriftRule | None = None, level: float = LEVEL
) -> Iterator[Test]:
    """The tests of all scopes, also those that so many contexts can never make fail. level: 1 - that of intervals.

    What a question that is not asked would have is shared among those that are: which ones is known beforehand.
    """
    tests = [test for one in _scopes(cases) for test in _tests(*one, budget, rule, level)]
    asked = sum(QUESTIONS[name] for name in {test.question for test in tests})
    for test in tests:
        yield replace(test, share=test.share * sum(QUESTIONS.values()) / asked)


def _scopes(cases: Sequence[Compared]) -> Iterator[tuple[str, float, list[Compared]]]:
    """(scope, share, its cases). What would be a second name for the same cases is left out."""
    seen: set[tuple[CaseId, ...]] = set()
    for kind, share in SCOPES.items():
        groups: dict[str, list[Compared]] = {}
        for one in cases:
            groups.setdefault(_scope(kind, one.record), []).append(one)
        for name, found in groups.items():
            held = tuple(one.record.case for one in found)
            if held not in seen:
                yield name, share / len(groups), found
            seen.add(held)


def _scope(kind: str, record: CaseRecord) -> str:
    names = {"run": RUN, "capability": f"capability {record.capability}", "task": f"task {record.case.task}"}
    return names[kind]


def _tests(
    scope: str, share: float, cases: Sequence[Compared], budget: Budget, rule: DriftRule | None, level: float
) -> Iterator[Test]:
    rule = rule or DriftRule()
    own = [(one.record, one.own) for one in cases if one.own is not None]
    told = [(one.record, one.own) for one in cases if one.own is not None and not one.why]
    limits = {name: limit for name in AGAINST_FP16 if (limit := getattr(budget, name)) is not None}
    for name, limit in limits.items():
        if pool := _beside(cases, name):
            yield from _limit(scope, share * QUESTIONS["budget"] / len(limits), pool, name, limit, level)
    if held := [one for one in cases if one.lossless is not None]:
        yield from _lossless(scope, share * QUESTIONS["lossless"], held, level)
    if own:
        pool, scored = (Pool.of(pairs, own[0][0].method) for pairs in (own, told))
        if scored:
            yield _scores(scope, share * QUESTIONS["regression"], scored, rule, level)
        yield from _drift(scope, share * QUESTIONS["drift"], pool, rule, level)
        yield from _divergence(scope, share * QUESTIONS["divergence"], pool, rule, level)


def _beside(cases: Iterable[Compared], name: str) -> Pool:
    """The contexts of which a limit against fp16 is asked."""
    asked = (one for one in cases if name != "drop" or (one.drop and not one.why))
    return Pool.of(((one.record, one.fp16) for one in asked if one.fp16 is not None), "fp16")


def _lossless(scope: str, share: float, cases: Sequence[Compared], level: float) -> Iterator[Test]:
    """Is a method that calls itself lossless, or nearly so, as near to fp16 as that means on this model?"""
    pairs = [(one.record, other) for one in cases if (other := one.fp16 or one.own) is not None]
    limit = max(one.lossless or 0.0 for one in cases)
    for test in _limit(scope, share, Pool.of(pairs, "fp16"), "kl", limit, level):
        yield replace(test, question="lossless", verdict=_renamed(test.verdict, "lossless"))


def _renamed(verdict: Callable[[bool], Verdict], question: str) -> Callable[[bool], Verdict]:
    return lambda rejects: replace(verdict(rejects), question=question)


def _limit(scope: str, share: float, pool: Pool, name: str, limit: float, level: float) -> Iterator[Test]:
    """Does the method lose more than its budget against fp16? Where it was measured in no context, nothing is said."""
    losses = AGAINST_FP16[name](pool, limit)
    if losses is None:
        return
    mean, p = losses.mean, losses.p()
    lost, won = stats.count_changes(losses.values)
    same = identical(pool.pairs) and name == "drop"

    def verdict(rejects: bool) -> Verdict:
        low, high = losses.interval(level)
        needed = contexts_needed(len(losses.values), mean, (low, high), losses.limit)
        if rejects:
            outcome, reason = "fail", f"beyond the budget: p = {p:.2g}"
        elif same:
            outcome, reason = "pass" if high <= losses.limit else "inconclusive", IDENTICAL
        elif high <= losses.limit:
            outcome, reason = "pass", "even the high end of the interval is within the budget"
        else:
            outcome, reason = (
                "inconclusive",
                f"about {needed:,} contexts would tell" if needed else "it is at the limit",
            )
        value = losses.shown(mean)
        lower, upper = sorted((losses.shown(low), losses.shown(high)))
        question = "budget" if name == "drop" else name
        return Verdict(question, outcome, value, lower, upper, limit, len(losses.values), lost, won, reason=reason)

    yield Test(scope, p, losses.least(), "budget", share, verdict)


def settled_by(verdict: Verdict) -> int | None:
    """Contexts at which this estimate would be clear of its limit; None where it is at the limit."""
    if verdict.reason == IDENTICAL:  # no variance is left, only the guard, and that goes with 1/n
        return int(np.ceil(verdict.n * verdict.high / verdict.limit)) if verdict.limit else None
    return contexts_needed(verdict.n, verdict.value, (verdict.low, verdict.high), verdict.limit)


def looks(times: int) -> int:
    """How often a run is judged that may take `times` as many contexts.

    >>> [looks(times) for times in (1, 2, 8, 9)]
    [1, 2, 4, 5]
    """
    return 1 + (times - 1).bit_length()


def most_telling(cases: Sequence[Compared], question: str, budget: Budget) -> list[CaseId]:
    """The cases of which more contexts tell most about a question that is open in the run, for the tokens they cost.

    question: of a verdict on the run against fp16.
    """
    name = "drop" if question == "budget" else question
    pool = _beside(cases, name)
    losses = AGAINST_FP16[name](pool, float(getattr(budget, name)))
    if losses is None:
        return []
    tokens = Counter[Hashable]()
    for record, _, _ in pool.contexts:
        tokens[_kind(record)] += record.case.length
    found, taken, share = losses.uncertainty(), set(), 0.0
    for kind in sorted(found, key=lambda kind: -found[kind] / tokens[kind]):
        if share < COVERED * sum(found.values()):
            taken.add(kind)
            share += found[kind]
    return list(dict.fromkeys(record.case for record, _, _ in pool.contexts if _kind(record) in taken))


def _kind(record: CaseRecord) -> Hashable:
    """The stratum of its contexts."""
    return record.case.task, record.case.length


def contexts_needed(n: int, mean: float, interval: tuple[float, float], limit: float) -> int | None:
    """Contexts that would settle it, if the mean stays what it is; None where it is at the limit.

    interval: of level 1 - LEVEL. A pass needs its high end within the limit, a fail a p-value below the run's level.
    """
    low, high = interval
    stricter = NormalDist().inv_cdf(FAILS_AT) / NormalDist().inv_cdf(LEVEL / 2)
    reach = (mean - low) * stricter if mean > limit else high - mean
    gap = abs(mean - limit)
    return None if gap < 1e-9 else max(n, int(np.ceil(n * (reach / gap) ** 2)))


def _scores(scope: str, share: float, pool: Pool, rule: DriftRule, level: float) -> Test:
    """Are the scores below the method's own record? Other hardware alone changes them up as often as down.

    Where that is not shown, they pass if they are the same, or if the interval lies within what other hardware flips.
    """
    losses = drops(pool, rule.points)
    mean = losses.mean
    lost, won = stats.count_changes(pool.drops)
    changes = pool.by_cluster(pool.drops)
    p = stats.sign_flip(changes)

    def verdict(rejects: bool) -> Verdict:
        low, high = losses.interval(level)
        inside = not (lost or won) or 100 * high <= rule.points
        outcome = "fail" if rejects else "pass" if inside else "inconclusive"
        reason = f"scores: p = {p:.2g}" if lost or won else AS_RECORDED
        return Verdict(
            "regression", outcome, 100 * mean, 100 * low, 100 * high, rule.points, len(pool), lost, won, reason=reason
        )

    return Test(scope, p, 0.5 ** len(changes), "regression", share, verdict)


def _drift(scope: str, share: float, pool: Pool, rule: DriftRule, level: float) -> Iterator[Test]:
    """Did the reference answers become less likely than in the method's own record, by more than float noise?

    A sign test over the clusters that moved (many, a little), and a binomial test of the broken ones against what other
    hardware moves that far (few, much); twice the smaller p-value. A mean within the margin never fails; what passes
    has its whole interval there, or did not move. Where nll was measured in no context, nothing is said.
    """
    changes = [context_drift(now, then, rule) for now, then in pool.pairs]
    pool = Pool([one for one, change in zip(pool.contexts, changes, strict=True) if change is not None])
    known = [change for change in changes if change is not None]
    if not known:
        return
    worse, better = stats.count_changes(pool.by_cluster(known))
    drawn = Counter(pool.clusters)
    broken = {name for name, change in zip(pool.clusters, known, strict=True) if change > rule.broken}
    noise = min(1.0, rule.noise * max(drawn.values()))  # a context is one draw, whatever the modes it is asked in
    most = max(abs(change) for change in known)
    spread = Losses(known, pool.weights, pool.clusters, pool.strata, -most, most, rule.margin)
    mean = spread.mean
    many = stats.mcnemar(worse, better, one_sided=True)
    few = float(stats.tail(len(broken), len(drawn), noise))
    p = min(1.0, 2 * min(many, few)) if mean > rule.margin else 1.0

    def verdict(rejects: bool) -> Verdict:
        low, high = spread.interval(level) if most else (0.0, 0.0)
        outcome = "fail" if rejects else "pass" if high <= rule.margin else "inconclusive"
        moved = f"{worse} contexts worse, {better} better, {len(broken)} broken; p = {p:.2g}"
        reason = moved if worse or better else AS_RECORDED
        return Verdict("drift", outcome, mean, low, high, rule.margin, len(pool), worse, better, reason=reason)

    least = 2 * float(stats.tail(len(drawn), len(drawn), noise))
    yield Test(scope, p, min(1.0, least), "drift", share, verdict)


def _divergence(scope: str, share: float, pool: Pool, rule: DriftRule, level: float) -> Iterator[Test]:
    """Is the method farther from the full cache than in its own record: is its KL more than `times` that of the record?

    The value is the mean KL now; the limit is what the record allows. It is as recorded where no turn moved; or where
    the mean moved by no more than float noise (single turns move farther on other hardware) and the whole interval lies
    within what is allowed. Where KL was measured in no context, nothing is said.
    """
    places, values = over_turns(pool, lambda a, b: None if a.kl is None or b.kl is None else a.kl - rule.times * b.kl)
    most = max((abs(value) for value in values), default=0.0)
    beyond = measured(pool, places, values, -most, most, rule.kl)
    if beyond is None:
        return
    then = measured(pool, *over_turns(pool, lambda a, b: None if a.kl is None else b.kl), 0.0, most, 0.0)
    before = then.mean if then is not None else 0.0
    recorded = rule.times * before
    mean, p = beyond.mean, beyond.p()
    same = not _moved(recorded + mean, before, rule)
    still = not any(
        _moved(a.kl, b.kl, rule) for now, then in pool.pairs for a, b in zip(now.turns, then.turns, strict=True)
    )
    worse, better = stats.count_changes(values)

    def verdict(rejects: bool) -> Verdict:
        low, high = beyond.interval(level)
        outcome = "fail" if rejects else "pass" if high <= rule.kl or still else "inconclusive"
        as_recorded = still or (same and outcome == "pass")
        reason = AS_RECORDED if as_recorded else f"more than {rule.times:g} times that of the record: p = {p:.2g}"
        value, lower, upper = (max(0.0, recorded + one) for one in (mean, low, high))
        limit, counts = recorded + rule.kl, (len(values), worse, better)
        return Verdict("divergence", outcome, value, lower, upper, limit, *counts, reason=reason)

    yield Test(scope, p, beyond.least(), "divergence", share, verdict)


def _moved(now: float | None, then: float | None, rule: DriftRule) -> bool:
    """Whether a KL is another than recorded, by more than float noise and the rounding of records."""
    return now is not None and then is not None and abs(now - then) > rule.kl + rule.share * then
