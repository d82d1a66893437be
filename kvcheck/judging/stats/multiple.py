"""Many tests at once."""

from __future__ import annotations

from collections.abc import Sequence


def weighted_holm(p_values: Sequence[float], shares: Sequence[float], total: float = 1.0) -> list[float]:
    """Holm's procedure where each test has its share of alpha: that of a rejected test goes to the others.

    Adjusted p-values in the order given: those <= alpha are the rejected ones; the family-wise error is at most
    total * alpha. total: the shares of the family, also of those tests that are not asked. Source: Holm 1979.

    >>> weighted_holm([0.02, 0.02], [0.75, 0.25])
    [0.02666666666666667, 0.02666666666666667]
    """
    left, running = total, 0.0
    adjusted = [0.0] * len(p_values)
    for index in sorted(range(len(p_values)), key=lambda index: p_values[index] / shares[index]):
        running = max(running, min(1.0, p_values[index] * left / (shares[index] * total)))
        adjusted[index] = running
        left = max(left - shares[index], shares[index] * 1e-9)
    return adjusted
