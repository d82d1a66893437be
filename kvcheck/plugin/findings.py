"""`--kv-findings`: what the papers found, measured and asserted on the model at hand. The `kv_finding` fixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from kvcheck.core.record import CaseId, CaseRecord, Finding
from kvcheck.plugin.item import KvItem
from kvcheck.plugin.timelimit import time_limit
from kvcheck.report import findings
from kvcheck.store.journal import Ended

if TYPE_CHECKING:
    import numpy as np

ALPHA = 0.05


class KvFinding(KvItem):
    """Measures methods on the same contexts and says whether a difference has the direction that a paper reports.

    Scores and drops are arrays with one number per context, in points, in the same order for every method.
    """

    def __init__(self, request: pytest.FixtureRequest) -> None:
        super().__init__(request)
        self.claim = " ".join((request.function.__doc__ or request.node.name).split())
        self.length = self.settings.lengths[0] if self.settings.lengths else 1024
        self.n = self.settings.contexts or 12
        self._found: list[Finding] = []

    def record(self, method: str, task: str, mode: str) -> CaseRecord:
        """A case, measured once per process."""
        from kvcheck.tasks import TASKS

        case = CaseId(task, TASKS.get(task).info.version, mode, self.length, self.settings.seed, self.n)
        key = (str(case), method)
        if key not in self._state.records:
            with time_limit(self.settings.timeout):
                self._state.records[key] = self._engine.run_case(case, method)
        return self._state.records[key]

    def scores(self, method: str, tasks: Sequence[str], mode: str, turns: slice = slice(None)) -> np.ndarray:
        """Points of every context, the mean over these turns."""
        import numpy as np

        found = []
        for task in tasks:
            for sample in sorted(self.record(method, task, mode).samples, key=lambda sample: sample.index):
                found.append(100 * np.mean([turn.score for turn in sample.turns[turns]]))
        return np.array(found)

    def drop(self, method: str, tasks: Sequence[str], mode: str, turns: slice = slice(None)) -> np.ndarray:
        """Points that every context loses against fp16."""
        return self.scores("fp16", tasks, mode, turns) - self.scores(method, tasks, mode, turns)

    def above(self, what: str, values: np.ndarray, bound: float = 0.0) -> None:
        """Assert that the mean lies above the bound, the whole interval with it."""
        low, high = _interval(values)
        self._show(what, values, low, high, f"> {bound:g}", low > bound)

    def below(self, what: str, values: np.ndarray, bound: float) -> None:
        """Assert that the mean lies below the bound, the whole interval with it."""
        low, high = _interval(values)
        self._show(what, values, low, high, f"< {bound:g}", high < bound)

    def measured(self, what: str, values: np.ndarray) -> None:
        """Report a number without asserting anything."""
        self._show(what, values, *_interval(values), "", None)

    def _show(self, what: str, values: np.ndarray, low: float, high: float, wanted: str, shown: bool | None) -> None:
        outcome = "measured" if shown is None else "shown" if shown else "not shown"
        found = Finding(self.claim, what, float(values.mean()), low, high, len(values), wanted, outcome)
        self._found.append(found)
        if shown is False:
            pytest.fail("\n".join(findings.lines([found])), pytrace=False)

    def _ended(self) -> Ended:
        """What rides on the report."""
        return Ended(self._node.name, "", {}, findings=tuple(self._found))


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean over contexts."""
    from kvcheck.judging.stats import bootstrap_interval

    return bootstrap_interval(values.tolist(), ALPHA)
