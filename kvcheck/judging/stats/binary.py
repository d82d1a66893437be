"""Right or wrong, one question per context: exact McNemar test and an exact interval for the drop."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincinv, gammaln, xlog1py, xlogy

Array = NDArray[np.float64]

_NUISANCE = np.sin(np.linspace(0.0, np.pi / 2, 65)) ** 2
_STEPS = 24


def count_changes(differences: Iterable[float]) -> tuple[int, int]:
    """(lost, won): contexts that got worse (d > 0) and better (d < 0)."""
    values = np.asarray(list(differences), dtype=float)
    return int((values > 1e-12).sum()), int((values < -1e-12).sum())


def tail(k: ArrayLike, n: ArrayLike, p: ArrayLike) -> Array:
    """P(X >= k) for X ~ Binomial(n, p), elementwise."""
    low, count, share = np.broadcast_arrays(np.asarray(k, float), np.asarray(n, float), np.asarray(p, float))
    inside = (low > 0) & (low <= count)
    value = betainc(np.where(inside, low, 1.0), np.where(inside, count - low + 1.0, 1.0), share)
    return np.where(inside, value, np.where(low <= 0, 1.0, 0.0))


def mcnemar(lost: int, won: int, *, one_sided: bool = False) -> float:
    """Exact McNemar p-value: given lost + won changed contexts, each is a loss with probability 1/2 if nothing changed.

    one_sided: the alternative is "worse". Source: McNemar 1947, in its exact binomial form.

    >>> mcnemar(6, 0)
    0.03125
    """
    changed = lost + won
    if one_sided:
        return float(tail(lost, changed, 0.5))
    return min(1.0, 2.0 * float(tail(max(lost, won), changed, 0.5)))


def clopper_pearson(count: int, n: int, alpha: float) -> tuple[float, float]:
    """Exact interval of level 1 - alpha for a proportion. Source: Clopper and Pearson 1934."""
    low = 0.0 if count == 0 else float(betaincinv(count, n - count + 1, alpha / 2))
    high = 1.0 if count == n else float(betaincinv(count + 1, n - count, 1 - alpha / 2))
    return low, high


def paired_interval(lost: int, right: int, won: int, wrong: int, alpha: float = 0.05) -> tuple[float, float]:
    """Exact interval of level 1 - alpha for the drop, with the baseline's answers on these prompts as the yardstick.

    lost of `right`: contexts that the baseline got right and the method wrong. won of `wrong`: the reverse. The drop is
    (right * P(lost) - wrong * P(won)) / (right + wrong): what the method loses where the baseline is right, less what
    it gains where it is wrong, in the proportions of this case. A context can only be lost where the baseline is right
    and only be won where it is wrong; with no wrong ones this is Clopper-Pearson, so 8 lost of 32 give [0.115, 0.434].

    Wins: each end inverts a one-sided exact test at alpha / 2 of lost - won, with the p-value maximised over the
    unknown P(won); unseen wins are allowed for, in the `wrong` contexts. No normal approximation; each end misses with
    probability at most alpha / 2 whatever P(lost) and P(won) are (tests/stats enumerates it).

    Because the yardstick is taken as it is, this asks "more than a limit below this baseline", not "any difference
    between two noisy runs": for that, mcnemar.
    """
    if not (0 <= lost <= right and 0 <= won <= wrong and right + wrong > 0):
        raise ValueError(f"{lost} lost of {right} and {won} won of {wrong} do not fit")
    return lower_end(lost, right, won, wrong, alpha / 2), -lower_end(won, wrong, lost, right, alpha / 2)


@lru_cache(maxsize=4096)
def lower_end(lost: int, right: int, won: int, wrong: int, level: float) -> float:
    """Lower end of paired_interval: the smallest drop that a one-sided test at `level` does not reject."""
    n = right + wrong
    low, high = -wrong / n, (lost - won) / n
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _p_value(lost - won, right, wrong, middle) > level:
            high = middle
        else:
            low = middle
    return low


def _p_value(net: int, right: int, wrong: int, drop: float) -> float:
    """P(lost - won >= net) if the drop is `drop`: the largest over P(won)."""
    n = right + wrong
    if not wrong:
        return float(tail(net, right, drop))
    fewest, most = max(0.0, -n * drop / wrong), min(1.0, (right - n * drop) / wrong)
    p_won = (fewest + (most - fewest) * _NUISANCE)[:, None]
    p_lost = np.clip((n * drop + wrong * p_won) / max(right, 1), 0.0, 1.0)
    won = np.arange(wrong + 1, dtype=float)[None, :]
    chance = np.exp(_log_binomial(wrong, won) + xlogy(won, p_won) + xlog1py(wrong - won, -p_won))
    return float((chance * tail(net + won, right, p_lost)).sum(axis=1).max())


def _log_binomial(n: int, k: Array) -> Array:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
