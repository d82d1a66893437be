"""Contexts of many cases put together: paired with a reference's, what they lose, and the interval of its mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from kvcheck.core.record import CaseRecord, SampleRecord, TurnRecord
from kvcheck.judging import stats
from kvcheck.judging.pairing import pair, score

Array = NDArray[np.float64]

ENOUGH = 24
"""Clusters of which no draw gives the guard half of the weight."""
LEVEL = 0.05
"""1 - the level of the intervals that are shown."""


@dataclass(frozen=True)
class Pool:
    """The paired contexts of several cases, (record, now, then) each."""

    contexts: Sequence[tuple[CaseRecord, SampleRecord, SampleRecord]]

    @classmethod
    def of(cls, cases: Iterable[tuple[CaseRecord, CaseRecord]], whose: str) -> Pool:
        """Pair the contexts of each (record, reference). Raises as `pair` does."""
        return cls([(record, now, then) for record, other in cases for now, then in pair(record, other, whose)])

    def __len__(self) -> int:
        return len(self.contexts)

    @cached_property
    def pairs(self) -> list[tuple[SampleRecord, SampleRecord]]:
        return [(now, then) for _, now, then in self.contexts]

    @cached_property
    def drops(self) -> list[float]:
        """The reference's score minus the method's, per context."""
        return [score(then) - score(now) for now, then in self.pairs]

    @cached_property
    def clusters(self) -> list[tuple[str, int, int, int]]:
        """The context that each was drawn as, whatever the mode in which it is asked."""
        return [(one.case.task, one.case.length, one.case.seed, now.index) for one, now, _ in self.contexts]

    @cached_property
    def strata(self) -> list[tuple[str, int]]:
        return [name[:2] for name in self.clusters]

    @cached_property
    def weights(self) -> list[float]:
        """Of each context; 1 where its task, mode and length were measured under one seed."""
        names = [(one.case.task, one.case.mode, one.case.length) for one, _, _ in self.contexts]
        seeds = [one.case.seed for one, _, _ in self.contexts]
        first: dict[Hashable, int] = {}
        for name, seed in zip(names, seeds, strict=True):
            first[name] = min(seed, first.get(name, seed))
        every = Counter(names)
        once = Counter(name for name, seed in zip(names, seeds, strict=True) if seed == first[name])
        return [once[name] / every[name] for name in names]

    def by_cluster(self, values: Sequence[float]) -> list[float]:
        """The sum of the values of each cluster."""
        sums: dict[object, float] = {}
        for name, value in zip(self.clusters, values, strict=True):
            sums[name] = sums.get(name, 0.0) + value
        return list(sums.values())


@dataclass(frozen=True)
class Losses:
    """What contexts lose against fp16, above 0 is worse, with the ends of its range.

    weights: of the values, above 0. limit: in the unit of the values; shown: from there to the unit of the verdict.
    bounded: the ends are known beforehand, not the largest values seen.
    """

    values: Sequence[float]
    weights: Sequence[float]
    clusters: Sequence[Hashable]
    strata: Sequence[Hashable]
    lowest: float
    highest: float
    limit: float
    shown: Callable[[float], float] = float
    bounded: bool = True

    @property
    def mean(self) -> float:
        return float(np.average(self.values, weights=self.weights))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Of the mean."""
        return stats.stratified_interval(
            self._weighed,
            self.clusters,
            self.strata,
            alpha,
            lowest=self.lowest * self._top,
            highest=self.highest * self._top,
        )

    def p(self) -> float:
        """One-sided p-value of "the mean is above the limit"."""
        return stats.stratified_p(self._weighed, self.clusters, self.strata, self.limit, lowest=self.lowest * self._top)

    @cached_property
    def _shares(self) -> Array:
        """The weights, 1 on average."""
        found = np.asarray(self.weights, dtype=float)
        return found / found.mean()

    @property
    def _weighed(self) -> Array:
        """Values whose plain mean is the weighted one."""
        return self._shares * np.asarray(self.values, dtype=float)

    @property
    def _top(self) -> float:
        """The largest weight: a guard stands for a context that has it."""
        return float(self._shares.max())

    def uncertainty(self) -> dict[Hashable, float]:
        """Of each stratum, what its clusters add to the variance of the mean, in one unit for all.

        A stratum of few contexts that happen to be alike is not known to have no variance: one cluster that varies as
        all do is counted in.
        """
        inside = dict(zip(self.clusters, self.strata, strict=True))
        data, names = stats.cluster(self._weighed, self.clusters)
        groups: dict[Hashable, list[float]] = {}
        for name, value in zip(names, data, strict=True):
            groups.setdefault(inside[name], []).append(float(value))
        squares = {name: float(np.var(values)) * len(values) for name, values in groups.items()}
        usual = sum(squares.values()) / len(data) or 1.0
        return {name: len(values) * (squares[name] + usual) / (len(values) + 1) for name, values in groups.items()}

    def least(self) -> float:
        """Where every context loses all that it can: the guard must weigh so much that the mean is at the limit."""
        if not self.bounded:  # however much is lost, a guard as far on the other side must weigh as much
            return _against_its_guard(len(set(self.clusters))) if self.lowest < 0 else stats.FINEST
        if self.highest <= self.limit:
            return 1.0
        guard = (self.highest - self.limit) / (self.highest - self.lowest)
        return max(stats.FINEST, float((1 - guard) ** len(set(self.clusters))))


@lru_cache(maxsize=64)
def _against_its_guard(clusters: int) -> float:
    """The p-value of so many clusters that are all alike above the limit, with a guard as far below it: some 1 in
    2 to the power of their number, as drawn.
    """
    return stats.FINEST if clusters > ENOUGH else stats.bootstrap_p(np.ones(clusters), 0.0, lowest=-1.0)


def drops(pool: Pool, limit: float) -> Losses:
    """Points of accuracy: no more can be lost than fp16 has, nor gained than it lacks."""
    mean = float(np.average([score(then) for _, then in pool.pairs], weights=pool.weights))
    return Losses(
        pool.drops, pool.weights, pool.clusters, pool.strata, mean - 1, mean, limit / 100, lambda share: 100 * share
    )


def drop_interval(pool: Pool) -> tuple[float, float]:
    """Interval of the mean drop in points, as the verdicts have it."""
    low, high = drops(pool, 0.0).interval(LEVEL)
    return 100 * low, 100 * high


def over_turns(pool: Pool, of: Callable[[TurnRecord, TurnRecord], float | None]) -> tuple[list[int], list[float]]:
    """(places, means over turns) of the contexts in which it was measured."""
    found = {}
    for at, (now, then) in enumerate(pool.pairs):
        turns = [of(a, b) for a, b in zip(now.turns, then.turns, strict=True)]
        known = [value for value in turns if value is not None]
        if known:
            found[at] = sum(known) / len(known)
    return list(found), list(found.values())


def _rise(pool: Pool, limit: float) -> Losses | None:
    """Of the reference answers' nll."""
    places, values = over_turns(pool, lambda a, b: None if a.nll is None or b.nll is None else a.nll - b.nll)
    most = max((abs(value) for value in values), default=0.0)
    return measured(pool, places, values, -most, most, limit)


def _divergence(pool: Pool, limit: float) -> Losses | None:
    places, values = over_turns(pool, lambda a, b: a.kl)
    return measured(pool, places, values, 0.0, max(values, default=0.0), limit)


def _disagreement(pool: Pool, limit: float) -> Losses | None:
    places, values = over_turns(pool, lambda a, b: None if a.agree is None else 1 - a.agree)
    found = measured(pool, places, values, 0.0, 1.0, 1 - limit)
    return None if found is None else replace(found, shown=lambda share: 1 - share, bounded=True)


def measured(
    pool: Pool, places: Sequence[int], values: Sequence[float], lowest: float, highest: float, limit: float
) -> Losses | None:
    if not values:
        return None
    weights = [pool.weights[at] for at in places]
    clusters, strata = ([names[at] for at in places] for names in (pool.clusters, pool.strata))
    return Losses(values, weights, clusters, strata, lowest, highest, limit, bounded=False)


AGAINST_FP16: dict[str, Callable[[Pool, float], Losses | None]] = {
    "drop": drops,
    "nll": _rise,
    "agree": _disagreement,
    "kl": _divergence,
}
"""The limits of a budget that all contexts together are held to."""
