"""A share of simulated runs, its interval, and whether it refutes a promise."""

from __future__ import annotations

from dataclasses import dataclass

from kvcheck.judging.stats import clopper_pearson


@dataclass(frozen=True)
class Rate:
    """count of runs. bound: the share that was promised as the largest, None where nothing was."""

    count: int
    runs: int
    bound: float | None = None

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
        """Whether the whole interval lies above what was promised."""
        return self.bound is not None and self.interval[0] > self.bound

    @property
    def verdict(self) -> str:
        """In a word: "holds" only where the whole interval lies below the bound."""
        if self.bound is None:
            return ""
        if self.refuted:
            return "BROKEN"
        return "holds" if self.interval[1] <= self.bound else "not refuted"

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    def plain(self) -> dict[str, object]:
        """For JSON."""
        low, high = self.interval
        return {"count": self.count, "runs": self.runs, "low": low, "high": high, "bound": self.bound}
