"""How many contexts a true drop needs: by the verdict on all contexts together, and by the usual gate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from kvcheck.core.record import RUN, context_score
from kvcheck.power.judging import failing_together
from kvcheck.power.rates import Rate
from kvcheck.power.recorded import Recorded
from kvcheck.power.runs import Setup, simulate

LEVEL, POWER, SIGMA = 0.05, 0.8, 50.0
FIRST = 2
"""Contexts per case that are looked at first."""


def usual(points: float, before: float = SIGMA, after: float | None = None) -> int:
    """Samples of a one-sided two-sample z test on unpaired means, at LEVEL and POWER. Standard deviations in points.

    With one sigma of 50 points this is the accuracy suite of TensorRT-LLM (tests/integration/defs/accuracy,
    `compute_theta`: theta = (z_alpha + z_beta) * sqrt(2 sigma^2 / n)), solved for n.
    """
    after = before if after is None else after
    z = float(ndtri(1 - LEVEL) + ndtri(POWER))
    return math.ceil(z * z * (before**2 + after**2) / points**2)


def spread(recorded: Recorded, methods: tuple[str, ...], points: float) -> tuple[float, float]:
    """Standard deviation of context scores in points, before and after a share of the contexts lost all answers."""
    means = np.array(
        [
            context_score(sample)
            for method in methods or recorded.methods
            for case in recorded.cases
            for sample in recorded.pair(method, case)[0].samples
        ]
    )
    mean = float(means.mean())
    kept = 1 - points / 100 / mean
    square = kept * float((means**2).mean())
    return 100 * float(means.std()), 100 * math.sqrt(max(0.0, square - (kept * mean) ** 2))


@dataclass(frozen=True)
class Needed:
    """The fewest contexts with enough power, and the power there; n is None where `most` do not do."""

    n: int | None
    most: int
    power: Rate

    def __str__(self) -> str:
        return f"{self.n:,}" if self.n is not None else f"more than {self.most:,}"


def needed(recorded: Recorded, setup: Setup, most: int, sims: int, seed: int) -> Needed:
    """Contexts of the quick profile's cases, equally many of each, until the verdict on the run is a failure.

    most: contexts that are looked at, at most.
    """
    cases = len(setup.source(recorded).cases)

    def failures(n: int) -> int:
        drawn = replace(setup, n=n)
        found = (simulate(recorded, drawn, run, seed, failing_together) for run in range(sims))
        return sum(any(scope == RUN for scope, _ in one.failed) for one in found)

    found = smallest(failures, sims, max(1, most // cases))
    return replace(found, n=None if found.n is None else found.n * cases, most=found.most * cases)


def smallest(detected: Callable[[int], int], sims: int, most: int) -> Needed:
    """Doubles n until the power is enough, then bisects: the same simulated runs at every n.

    An exact test gains power in steps and dips a little between them, so the answer can be one step off.
    """
    low, high = 0, min(FIRST, most)
    count = detected(high)
    while count / sims < POWER:
        if high >= most:
            return Needed(None, most, Rate(count, sims))
        low, high = high, min(2 * high, most)
        count = detected(high)
    while high - low > 1:
        middle = (low + high) // 2
        detections = detected(middle)
        if detections / sims >= POWER:
            high, count = middle, detections
        else:
            low = middle
    return Needed(high, most, Rate(count, sims))
