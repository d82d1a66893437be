"""The `kv_property` fixture: tries one property on one method, and lets what it says ride on the report."""

from __future__ import annotations

import pytest

from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import EXCUSED, FAILS, UNSERVED, PropertyRecord
from kvcheck.plugin.item import KvItem, said
from kvcheck.plugin.timelimit import TimeLimit
from kvcheck.report import conformance
from kvcheck.store.journal import Ended


class KvProperty(KvItem):
    """One property on one method: `check(examine())`."""

    def __init__(self, request: pytest.FixtureRequest, name: str, method: str) -> None:
        super().__init__(request, method)
        self.name = name
        self.found: PropertyRecord | None = None

    def examine(self) -> PropertyRecord:
        """Try it on drawn lengths, batches and chunks: more of them in larger profiles."""
        known = self._state.kept.properties if self._state.kept is not None else {}
        if self.method not in self._state.anew and (self.name, self.method) in known:
            self.found = known[self.name, self.method]
            return self.found
        where = self._state.died(self.method)
        dead = f"it was not tried: its process died in {where}"
        self.found = PropertyRecord(self.name, self.method, FAILS, 0, dead) if where else self._tried()
        return self.found

    def _tried(self) -> PropertyRecord:
        from kvcheck.conformance import runner

        trials, seed = runner.TRIALS[self.settings.profile], self.settings.seed
        found, reason = self._attempt(lambda: runner.examine(self.name, self.method, trials, seed), self._problem)
        return found or PropertyRecord(self.name, self.method, FAILS, 0, reason)

    def _problem(self, error: BaseException) -> str:
        if isinstance(error, TimeLimit):
            return f"it took longer than {self.settings.timeout:g} s (--kv-timeout)"
        return str(error) if isinstance(error, KvcheckError) else f"it raised {said(error)}"

    def _ended(self) -> Ended:
        """What rides on the report."""
        return Ended(self.name, self.method, {}, property=self.found)

    def check(self, found: PropertyRecord) -> None:
        """Fail with the smallest failing trial; skip, counted, what does not apply."""
        if found.outcome == FAILS:
            pytest.fail("\n".join(conformance.failure(found)), pytrace=False)
        if found.outcome in (EXCUSED, UNSERVED):
            pytest.skip(f"{found.outcome}: {found.reason}")
