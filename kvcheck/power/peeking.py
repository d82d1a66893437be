"""Does looking after every block of contexts cost false alarms? One case at a time, at the level of a whole run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvcheck.core.record import CaseRecord, SampleRecord, Verdict, context_score
from kvcheck.judging.budget import Budget, judge
from kvcheck.judging.pairing import is_right_or_wrong, pair
from kvcheck.judging.pooled import Compared
from kvcheck.power.judging import ALPHA, stopped
from kvcheck.power.losses import Loss
from kvcheck.power.noise import Noise
from kvcheck.power.rates import Rate
from kvcheck.power.recorded import Recorded
from kvcheck.power.resample import pooled


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
        return Loss(self.loss).apply([record], rng)[0], fp16

    def expected(self, now: SampleRecord, then: SampleRecord) -> float:
        """The mean drop of one context."""
        score = context_score(now)
        return context_score(then) - (1 - self.loss) * (score + self.flips * (1 - 2 * score))

    @property
    def drop(self) -> float:
        """The true drop over all contexts, as a share."""
        return float(np.mean([self.expected(now, then) for now, then in self.pairs]))


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


Look = Callable[[Compared, Budget], tuple[Verdict, ...]]


def after_every_block(trial: Compared, budget: Budget) -> tuple[Verdict, ...]:
    """The verdicts on a case that may end after any of its blocks."""
    return judge(stopped(trial, budget, ALPHA), trial.fp16, trial.own, budget, ALPHA)


@dataclass(frozen=True)
class Peeking:
    """Failures of one case of n contexts that is looked at after every block; nothing should fail."""

    world: str
    n: int
    failed: Rate


def peek(
    recorded: Recorded, world: World, n: int, sims: int, seed: int, at: int = 0, look: Look = after_every_block
) -> Peeking:
    """The true drop is exactly the limit: the hardest harmless method."""
    rng = np.random.default_rng([seed, 400, at, n])
    budget = Budget(drop=100 * max(0.0, world.drop))
    count = 0
    for _ in range(sims):
        record, fp16 = world.draw(n, rng)
        count += any(one.outcome == "fail" for one in look(Compared(record, fp16, None), budget))
    return Peeking(world.name, n, Rate(count, sims, ALPHA))
