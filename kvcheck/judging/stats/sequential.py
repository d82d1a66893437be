"""Looking after every block without paying for it: bets against a hypothesis, valid at any time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, xlog1py, xlogy

_BETS = np.array([0.04, 0.1, 0.2, 0.4, 0.7, 0.97])
_SHARES = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.5])  # half on the largest bet: total collapse must show soonest
_STEPS = 30


def log_capital(values: Sequence[float] | NDArray[np.float64], mean: float, *, lowest: float = -1.0) -> float:
    """Log of the capital won by betting that the mean of values >= `lowest` is above `mean`.

    If it is not above, the capital is a non-negative supermartingale that starts at 1: P(it ever reaches 1 / alpha) is
    at most alpha, however often one looks (Ville). Each bet stakes a fixed share of the capital, and the capital is
    the average over a grid of shares (the "hedged capital" of Waudby-Smith and Ramdas 2024, with a mixture in place of
    a plug-in bet: it needs no warm-up, and the order of the contexts does not matter).
    """
    data = np.asarray(values, dtype=float)
    if mean <= lowest:
        return float("inf") if (data > lowest).any() else 0.0
    odds = (data - mean) / (mean - lowest)
    growth = np.log1p(np.outer(_BETS, odds)).sum(axis=1)
    top = growth.max()
    return float(top + np.log(np.exp(growth - top) @ _SHARES))


def confidence_sequence(
    values: Sequence[float], alpha: float = 0.05, *, lowest: float = -1.0, highest: float = 1.0
) -> tuple[float, float]:
    """Interval for the mean of values in [lowest, highest] that holds at every sample size at once.

    P(the mean is ever outside) <= alpha, so it may be looked at after every block and sampling may stop on it. No
    values give the whole range. Raises ValueError for values outside the range.
    """
    data = np.asarray(values, dtype=float)
    if not data.size:
        return lowest, highest
    if data.min() < lowest - 1e-9 or data.max() > highest + 1e-9 or not np.isfinite(data).all():
        raise ValueError(f"values outside [{lowest}, {highest}]")
    return _lower(data, alpha / 2, lowest), -_lower(-data, alpha / 2, -highest)


def _lower(data: NDArray[np.float64], level: float, lowest: float) -> float:
    """The largest mean that the capital rejects; the capital falls as the hypothesised mean rises."""
    low, high = lowest, float(data.mean())
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if log_capital(data, middle, lowest=lowest) >= -np.log(level):
            low = middle
        else:
            high = middle
    return low


def binary_sequence(
    lost: int, right: int, won: int, wrong: int, share: float, alpha: float = 0.05
) -> tuple[float, float]:
    """As confidence_sequence, for right/wrong scores: the drop of stats.paired_interval, at every sample size at once.

    lost of `right` and won of `wrong` are those seen so far. share: the part of the whole case's contexts that the
    baseline has right, known beforehand. The evidence against a pair (P(lost), P(won)) is the likelihood ratio of
    Jeffreys' mixture to it (Robbins 1970), a martingale that starts at 1; the interval is the range of
    share * P(lost) - (1 - share) * P(won) over the pairs whose evidence is below 1 / alpha.
    """
    low = _lowest_drop(lost, right, won, wrong, share, alpha)
    return low, -_lowest_drop(won, wrong, lost, right, 1 - share, alpha)


def _lowest_drop(lost: int, right: int, won: int, wrong: int, share: float, alpha: float) -> float:
    p_won = np.array([0.0]) if share == 1 else np.linspace(0.0, 1.0, 501)
    left = -np.log(alpha) - _evidence(won, wrong, p_won)  # what the evidence against P(lost) may still be
    best = lost / right if right else 0.0
    low, high = np.zeros_like(p_won), np.full_like(p_won, best)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        refused = _evidence(lost, right, middle) >= left
        low, high = np.where(refused, middle, low), np.where(refused, high, middle)
    possible = _evidence(lost, right, np.full_like(p_won, best)) < left
    return float(np.where(possible, share * low - (1 - share) * p_won, np.inf).min())


def _evidence(count: int, n: int, p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log likelihood ratio of Jeffreys' mixture to the probability p, after count of n."""
    mixture = betaln(count + 0.5, n - count + 0.5) - betaln(0.5, 0.5)
    return np.asarray(mixture - xlogy(count, p) - xlog1py(n - count, -p), dtype=float)
