"""How many contexts a true drop needs: by the paired test, by kvcheck's verdict on one case, and by the usual gate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from kvcheck.core.record import CaseRecord, SampleRecord
from kvcheck.judging import stats
from kvcheck.judging.budget import Budget, judge
from kvcheck.power.judging import failures
from kvcheck.power.noise import Loss, Noise
from kvcheck.power.rates import Rate
from kvcheck.power.recorded import Recorded
from kvcheck.power.resample import pooled, widths

Array = NDArray[np.float64]
LEVEL, POWER, SIGMA = 0.05, 0.8, 50.0
LARGEST = 3000
"""Contexts times points that are looked at: up to 1,000 contexts for a drop of 3 points."""
FIRST = 16


@dataclass(frozen=True)
class Pool:
    """Scores of recorded contexts, one row per context and one column per turn, filled up with NaN."""

    name: str
    scores: Array

    @property
    def means(self) -> Array:
        """Score per context."""
        return np.asarray(np.nanmean(self.scores, axis=1))

    @property
    def turns(self) -> float:
        """Questions per context."""
        return float((~np.isnan(self.scores)).sum(axis=1).mean())


def pool(recorded: Recorded, name: str, methods: Sequence[str], *, single: bool = False) -> Pool:
    """The recorded contexts of some methods. single: only those with one question."""
    vectors = [
        tuple(turn.score for turn in sample.turns)
        for method in methods
        for case in recorded.cases
        for sample in recorded.pair(method, case)[0].samples
        if not single or len(sample.turns) == 1
    ]
    return Pool(name, widths(vectors))


def usual(points: float, before: float = SIGMA, after: float | None = None) -> int:
    """Samples of a one-sided two-sample z test on unpaired means, at LEVEL and POWER. Standard deviations in points.

    With one sigma of 50 points this is the accuracy suite of TensorRT-LLM (tests/integration/defs/accuracy,
    `compute_theta`: theta = (z_alpha + z_beta) * sqrt(2 sigma^2 / n)), solved for n.
    """
    after = before if after is None else after
    z = float(ndtri(1 - LEVEL) + ndtri(POWER))
    return math.ceil(z * z * (before**2 + after**2) / points**2)


def spread_after(means: Array, points: float) -> tuple[float, float]:
    """Standard deviation of context scores in points, as recorded and after the loss."""
    share = Loss.of(points, float(means.mean()), None).share
    square = (1 - share) * float((means**2).mean())
    return 100 * float(means.std()), 100 * math.sqrt(max(0.0, square - ((1 - share) * float(means.mean())) ** 2))


# -- the paired test alone ---------------------------------------------------------------------------------------------


def differences(found: Pool, points: float, noise: Noise, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Own score minus rerun's for `shape` = (simulations, contexts)."""
    scores = found.scores[rng.integers(0, len(found.scores), shape)]
    valid = ~np.isnan(scores)
    own = _flipped(scores, noise.flips, rng)
    again = _flipped(scores, noise.flips, rng)
    again[rng.random(shape) < Loss.of(points, float(found.means.mean()), None).share] = 0.0
    return np.asarray(np.where(valid, own - again, 0.0).sum(axis=2) / valid.sum(axis=2)).round(6)


def _flipped(scores: Array, share: float, rng: np.random.Generator) -> Array:
    return np.where(rng.random(scores.shape) < share, 1.0 - scores, scores)


def is_worse(values: Array, level: float = LEVEL) -> bool:
    """The one-sided paired test that kvcheck uses at full n, as in questions.score_regression."""
    changed = values[np.abs(values) > 1e-12]
    if (np.abs(changed) == 1).all():
        return stats.mcnemar(*stats.count_changes(changed), one_sided=True) <= level
    return stats.sign_flip(changed.tolist()) <= level


def paired(recorded: Recorded, found: Pool, points: float, noise: Noise, sims: int, seed: int) -> Needed:
    """Contexts that the paired test needs for the drop."""
    rng = np.random.default_rng([seed, 100, round(10 * points), round(1e6 * noise.flips)])
    most = int(LARGEST / points)
    drawn = differences(found, points, noise, (sims, most), rng)
    return smallest(lambda n: sum(is_worse(row[:n]) for row in drawn), sims, most)


@dataclass(frozen=True)
class Needed:
    """The smallest number of contexts with enough power, and the power there; n is None where `most` do not do."""

    n: int | None
    most: int
    power: Rate

    def __str__(self) -> str:
        return str(self.n) if self.n is not None else f"more than {self.most}"


def smallest(detected: Callable[[int], int], sims: int, most: int) -> Needed:
    """Doubles n until the power is enough, then bisects: the same simulated contexts at every n.

    An exact test gains power in steps and dips a little between them, so the answer can be one step off.
    """
    low, high = 0, min(FIRST, most)
    count = detected(high)
    while count / sims < POWER:
        if high >= most:
            return Needed(None, most, Rate(count, sims))
        low, high = high, min(2 * high, most)
        count = detected(high)
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        detections = detected(middle)
        if detections / sims >= POWER:
            high, count = middle, detections
        else:
            low = middle
    return Needed(high, most, Rate(count, sims))


# -- the verdict on one case -------------------------------------------------------------------------------------------


def judged(recorded: Recorded, points: float, noise: Noise, nll: bool, sims: int, seed: int) -> Needed:
    """Contexts that one case of single questions needs until `judge` fails it against its own record, at LEVEL."""
    rng = np.random.default_rng([seed, 200 + nll, round(10 * points), round(1e6 * noise.flips)])
    samples, like = singles(recorded)
    accuracy = float(np.mean([sample.turns[0].score for sample in samples]))
    loss = Loss.of(points, accuracy, recorded.nll_rises() if nll else None)
    most = int(LARGEST / points)
    pairs = []
    for _ in range(sims):
        truth = pooled([samples[at] for at in rng.integers(0, len(samples), most)], like)
        pairs.append((loss.apply(noise.apply(truth, rng), rng), noise.apply(truth, rng)))
    return smallest(lambda n: sum(_fails(now, then, n) for now, then in pairs), sims, most)


def _fails(now: CaseRecord, then: CaseRecord, n: int) -> bool:
    own = pooled(list(then.samples[:n]), then)
    record = pooled(list(now.samples[:n]), now)
    return bool(failures(judge(record, None, own, Budget(drop=None), LEVEL, "self")))


def singles(recorded: Recorded) -> tuple[list[SampleRecord], CaseRecord]:
    """(contexts with one right/wrong question of all methods, a record they are like)."""
    found, like = [], None
    for method in recorded.methods:
        for case in recorded.cases:
            own, _ = recorded.pair(method, case)
            if all(len(sample.turns) == 1 and sample.turns[0].score in (0, 1) for sample in own.samples):
                found += list(own.samples)
                like = own if like is None else like
    if like is None:
        raise ValueError("no case with one question per context")
    return found, like
