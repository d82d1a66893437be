"""A share of simulated runs, its interval, and whether it refutes what was promised or wanted."""

from __future__ import annotations

from dataclasses import dataclass

from kvcheck.judging.stats import clopper_pearson


@dataclass(frozen=True)
class Rate:
    """count of runs. most, least: the share that is allowed at most, or wanted at least; None where nothing is."""

    count: int
    runs: int
    most: float | None = None
    least: float | None = None

    @property
    def share(self) -> float:
        """The share that was seen."""
        return self.count / self.runs

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % interval (Clopper and Pearson)."""
        return clopper_pearson(self.count, self.runs, 0.05)

    @property
    def refuted(self) -> bool:
        """Whether the whole interval lies on the wrong side."""
        low, high = self.interval
        return (self.most is not None and low > self.most) or (self.least is not None and high < self.least)

    @property
    def met(self) -> bool:
        """Whether the share that was seen lies on the right side."""
        most, least = (1.0 if self.most is None else self.most), (0.0 if self.least is None else self.least)
        return least <= self.share <= most

    @property
    def wanted(self) -> str:
        """In words."""
        ends = (("at most", self.most), ("at least", self.least))
        return " and ".join(f"{word} {100 * end:g} %" for word, end in ends if end is not None)

    @property
    def verdict(self) -> str:
        """In a word: "reached" for the share that was seen; "MISSED" only where the whole interval misses."""
        if self.most is None and self.least is None:
            return ""
        return "reached" if self.met else "MISSED" if self.refuted else "not reached"

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    def plain(self) -> dict[str, object]:
        """For JSON."""
        low, high = self.interval
        return {
            "count": self.count,
            "runs": self.runs,
            "low": low,
            "high": high,
            "most": self.most,
            "least": self.least,
        }
