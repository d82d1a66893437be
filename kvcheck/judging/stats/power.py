"""What a number of contexts can see."""

from __future__ import annotations

from functools import lru_cache

from kvcheck.judging.stats.binary import lower_end, mcnemar


@lru_cache(maxsize=1024)
def detectable(n: int, alpha: float = 0.05, *, limit: float = 0.0, right: int | None = None) -> float | None:
    """The smallest drop, as a share of n contexts lost and none won, whose interval lies wholly above `limit`.

    right: how many of the n the baseline has right (all of them by default). None when losing all of those would not
    do. On graded scores a drop of this size is seen too when it comes from as few contexts; one spread evenly is seen
    earlier.
    """
    right = n if right is None else right
    low, high = 1, right
    if right < 1 or lower_end(right, right, 0, n - right, alpha / 2) <= limit:
        return None
    while low < high:
        middle = (low + high) // 2
        if lower_end(middle, right, 0, n - right, alpha / 2) > limit:
            high = middle
        else:
            low = middle + 1
    return low / n


def detectable_change(n: int, alpha: float = 0.05) -> float | None:
    """The smallest share of n contexts, all of them losses, that a one-sided McNemar test at alpha calls worse."""
    for lost in range(1, n + 1):
        if mcnemar(lost, 0, one_sided=True) <= alpha:
            return lost / n
    return None
