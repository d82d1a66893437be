"""Do the intervals hold the truth, and does looking after every block cost false alarms? One case at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvcheck.core.record import CaseRecord, SampleRecord, context_score
from kvcheck.judging.budget import Budget
from kvcheck.judging.pairing import is_right_or_wrong, pair
from kvcheck.judging.questions import drop_interval
from kvcheck.power.judging import Judge, Trial, as_a_run_does
from kvcheck.power.noise import Loss, Noise
from kvcheck.power.rates import Rate
from kvcheck.power.recorded import Recorded
from kvcheck.power.resample import pooled

LEVEL = 0.05


@dataclass(frozen=True)
class World:
    """Where samples come from: contexts of fp16 with the method's scores on them, and what happens to the method.

    pairs: (method, fp16) contexts. loss and flips act on the method's side, so that the true drop is known exactly.
    """

    name: str
    pairs: tuple[tuple[SampleRecord, SampleRecord], ...]
    like: CaseRecord
    loss: float = 0.0
    flips: float = 0.0

    def draw(self, n: int, rng: np.random.Generator) -> tuple[CaseRecord, CaseRecord]:
        """(record, fp16) of n contexts."""
        picks = rng.integers(0, len(self.pairs), n)
        record = pooled([self.pairs[at][0] for at in picks], self.like)
        fp16 = pooled([self.pairs[at][1] for at in picks], self.like)
        record = Noise("", flips=self.flips).apply(record, rng)
        return Loss(self.loss, ()).apply(record, rng), fp16

    def expected(self, now: SampleRecord, then: SampleRecord) -> float:
        """The mean drop of one context."""
        score = context_score(now)
        return context_score(then) - (1 - self.loss) * (score + self.flips * (1 - 2 * score))

    @property
    def drop(self) -> float:
        """The true drop over all contexts, as a share."""
        return float(np.mean([self.expected(now, then) for now, then in self.pairs]))

    def given(self, fp16: CaseRecord) -> float:
        """The true drop in the proportions of right and wrong answers of this fp16 record."""
        by_score: dict[float, list[float]] = {}
        for now, then in self.pairs:
            by_score.setdefault(context_score(then), []).append(self.expected(now, then))
        return float(np.mean([np.mean(by_score[context_score(one)]) for one in fp16.samples]))


def worlds(recorded: Recorded) -> list[World]:
    """Right/wrong and graded ones: every recorded method, and fp16 with a small and a large loss."""
    found = []
    for kind, single in (("right/wrong", True), ("several turns", False)):
        every = _pairs(recorded, [name for name in recorded.methods if name != "fp16"], single)
        base = _pairs(recorded, ["fp16"], single)
        like = _like(recorded, single)
        if every:
            found.append(World(f"{kind}, methods as recorded", tuple(every), like))
        found.append(World(f"{kind}, 0.5 % of answers flip", tuple(base), like, 0.0, 0.005))
        found.append(World(f"{kind}, 3 % of contexts lost", tuple(base), like, 0.03, 0.005))
        found.append(World(f"{kind}, 20 % of contexts lost", tuple(base), like, 0.2, 0.02))
    return found


def still(recorded: Recorded) -> list[World]:
    """fp16 as it was recorded: right/wrong answers, and several turns."""
    kinds = (("right/wrong", True), ("several turns", False))
    return [World(kind, tuple(_pairs(recorded, ["fp16"], single)), _like(recorded, single)) for kind, single in kinds]


def _is_single(sample: SampleRecord) -> bool:
    return len(sample.turns) == 1


def _pairs(recorded: Recorded, methods: Sequence[str], single: bool) -> list[tuple[SampleRecord, SampleRecord]]:
    found = []
    for method in methods:
        for case in recorded.cases:
            own, fp16 = recorded.pair(method, case)
            if _is_single(own.samples[0]) == single and (not single or is_right_or_wrong(pair(own, fp16, "fp16"))):
                found += pair(own, fp16, "fp16")
    return found


def _like(recorded: Recorded, single: bool) -> CaseRecord:
    records = [recorded.pair("fp16", case)[1] for case in recorded.cases]
    return next(one for one in records if _is_single(one.samples[0]) == single)


@dataclass(frozen=True)
class Coverage:
    """Misses of drop_interval: of the drop that it promises to hold, and of the other one.

    Right/wrong answers: promised is the drop in the proportions of the case's own fp16 answers (stats.paired_interval),
    the other is the drop over all contexts. Several turns: promised is the mean over all contexts
    (stats.bootstrap_interval), the other is the one given the case's fp16 answers. drop: over all contexts, in points.
    """

    world: str
    n: int
    drop: float
    promised: Rate
    other: Rate


def cover(recorded: Recorded, world: World, n: int, sims: int, seed: int, at: int = 0) -> Coverage:
    """Simulate complete cases of n contexts at LEVEL."""
    rng = np.random.default_rng([seed, 300, at, n])
    truth, given, overall = world.drop, 0, 0
    for _ in range(sims):
        record, fp16 = world.draw(n, rng)
        low, high = drop_interval(record, fp16, pair(record, fp16, "fp16"), LEVEL)
        own = world.given(fp16)
        given += not low - 1e-6 <= own <= high + 1e-6
        overall += not low - 1e-6 <= truth <= high + 1e-6
    misses = (given, overall) if is_right_or_wrong(list(world.pairs)) else (overall, given)
    return Coverage(world.name, n, 100 * truth, Rate(misses[0], sims, LEVEL), Rate(misses[1], sims))


@dataclass(frozen=True)
class Peeking:
    """Failures of one case of n contexts that is looked at after every block; nothing should fail."""

    world: str
    question: str
    n: int
    failed: Rate


def peek_budget(
    recorded: Recorded, world: World, n: int, sims: int, seed: int, at: int = 0, judge: Judge = as_a_run_does
) -> Peeking:
    """The true drop is exactly the limit: the hardest harmless method."""
    rng = np.random.default_rng([seed, 400, at, n])
    limit = 100 * max(0.0, world.drop)
    count = 0
    for _ in range(sims):
        record, fp16 = world.draw(n, rng)
        verdicts = judge(Trial(record, fp16, None, Budget(drop=limit), LEVEL, "fp16"))
        count += any(one.outcome == "fail" for one in verdicts)
    return Peeking(world.name, "budget", n, Rate(count, sims, LEVEL))


def peek_regression(
    recorded: Recorded, world: World, n: int, noise: Noise, sims: int, seed: int, judge: Judge = as_a_run_does
) -> Peeking:
    """The method against its own record: scores and drift."""
    rng = np.random.default_rng([seed, 500, round(1e6 * noise.flips), n, noise.both])
    count = 0
    for _ in range(sims):
        truth, _ = world.draw(n, rng)
        own = replace(noise.apply(truth, rng) if noise.both else truth, method="m")
        record = replace(noise.apply(truth, rng), method="m")
        verdicts = judge(Trial(record, None, own, Budget(drop=None), LEVEL, "self"))
        count += any(one.outcome == "fail" for one in verdicts)
    return Peeking(f"{world.name}; {noise.name}", "regression", n, Rate(count, sims, LEVEL if noise.both else None))
