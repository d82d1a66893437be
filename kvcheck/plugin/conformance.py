"""The `kv_property` fixture: tries one property on one method, and lets what it says ride on the report."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kvcheck.conformance import NAMES
from kvcheck.core.errors import KvcheckError
from kvcheck.core.escape import plain
from kvcheck.core.record import EXCUSED, FAILS, UNSERVED, PropertyRecord
from kvcheck.core.settings import Settings
from kvcheck.models import synthetic
from kvcheck.plugin import items, options, state
from kvcheck.plugin.case import said
from kvcheck.plugin.timelimit import TimeLimit, time_limit
from kvcheck.report import conformance
from kvcheck.store.journal import Ended


def wanted(settings: Settings, marks: str = "") -> bool:
    """Whether properties are tried: not where certain tasks, modes or lengths are asked for, and not to record.

    Nor with a model of random weights, which is there for memory and latency. marks: the expression of -m; where it
    asks for them by name, they are tried whatever else is asked for.
    """
    if re.search(r"(?<!not )\bconformance\b", marks):
        return True
    narrow = settings.tasks or settings.modes or settings.lengths or settings.record
    return not (narrow or synthetic.is_random(settings.model))


def params(settings: Settings, marks: str = "") -> list[Any]:
    """One parameter (property, method) per item."""
    pairs = [(name, method) for method in settings.methods for name in NAMES] if wanted(settings, marks) else []
    return [pytest.param(pair, id=plain("-".join(pair)), marks=[pytest.mark.conformance]) for pair in pairs]


class KvProperty:
    """One property on one method: `check(examine())`."""

    def __init__(self, request: pytest.FixtureRequest, name: str, method: str) -> None:
        self.name, self.method = name, method
        self._state = state.activate(request.config)
        self.settings = self._state.settings
        self._node = request.node
        self.found: PropertyRecord | None = None
        request.node.stash[options.RESULT] = self._ended

    def examine(self) -> PropertyRecord:
        """Try it on drawn lengths, batches and chunks: more of them in larger profiles."""
        known = self._state.kept.properties if self._state.kept is not None else {}
        if self.method not in self._state.anew and (self.name, self.method) in known:
            self.found = known[self.name, self.method]
            return self.found
        where = state.died(self._state, self.method)
        dead = f"it was not tried: its process died in {where}"
        self.found = PropertyRecord(self.name, self.method, FAILS, 0, dead) if where else self._tried()
        return self.found

    def _tried(self) -> PropertyRecord:
        from kvcheck.conformance import runner

        try:
            state.start(self._state, items.of(self._node))
            with time_limit(self.settings.timeout):
                return runner.examine(self.name, self.method, runner.TRIALS[self.settings.profile], self.settings.seed)
        except TimeLimit:
            reason = f"it took longer than {self.settings.timeout:g} s (--kv-timeout)"
        except KvcheckError as error:
            reason = str(error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also what pytest raises to skip
            reason = f"it raised {said(error)}"
        return PropertyRecord(self.name, self.method, FAILS, 0, reason)

    def _ended(self) -> Ended:
        """What rides on the report."""
        return Ended(self.name, self.method, {}, property=self.found)

    def check(self, found: PropertyRecord) -> None:
        """Fail with the smallest failing trial; skip, counted, what does not apply."""
        if found.outcome == FAILS:
            pytest.fail("\n".join(conformance.failure(found)), pytrace=False)
        if found.outcome in (EXCUSED, UNSERVED):
            pytest.skip(f"{found.outcome}: {found.reason}")
