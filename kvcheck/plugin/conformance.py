"""The `kv_property` fixture: tries one property on one method, and lets what it says ride on the report."""

from __future__ import annotations

from typing import Any

import pytest

from kvcheck.conformance import NAMES
from kvcheck.errors import KvcheckError
from kvcheck.escape import plain
from kvcheck.models import synthetic
from kvcheck.plugin import state
from kvcheck.plugin.timelimit import TimeLimit, time_limit
from kvcheck.record import EXCUSED, FAILS, UNSERVED, PropertyRecord
from kvcheck.report import conformance
from kvcheck.runfile import dumps
from kvcheck.settings import Settings

PROPERTY = "kvcheck_property"


def wanted(settings: Settings) -> bool:
    """Whether properties are tried: not where certain tasks, modes or lengths are asked for, and not to record.

    Nor with a model of random weights, which is there for memory and latency.
    """
    narrow = settings.tasks or settings.modes or settings.lengths or settings.record
    return not (narrow or synthetic.is_random(settings.model))


def params(settings: Settings) -> list[Any]:
    """One parameter (property, method) per item."""
    pairs = [(name, method) for method in settings.methods for name in NAMES] if wanted(settings) else []
    return [pytest.param(pair, id=plain("-".join(pair)), marks=[pytest.mark.conformance]) for pair in pairs]


class KvProperty:
    """One property on one method: `check(examine())`."""

    def __init__(self, request: pytest.FixtureRequest, name: str, method: str) -> None:
        self.name, self.method = name, method
        self.settings = state.settings(request.config)
        self._node = request.node

    def examine(self) -> PropertyRecord:
        """Try it on drawn lengths, batches and chunks: more of them in larger profiles."""
        from kvcheck.conformance import runner

        try:
            with time_limit(self.settings.timeout):
                found = runner.examine(self.name, self.method, runner.TRIALS[self.settings.profile], self.settings.seed)
        except TimeLimit:
            found = PropertyRecord(
                self.name, self.method, FAILS, 0, f"it took longer than {self.settings.timeout:g} s (--kv-timeout)"
            )
        except KvcheckError as error:
            found = PropertyRecord(self.name, self.method, FAILS, 0, str(error))
        self._node.user_properties.append((PROPERTY, dumps(found)))
        return found

    def check(self, found: PropertyRecord) -> None:
        """Fail with the smallest failing trial; skip, counted, what does not apply."""
        if found.outcome == FAILS:
            pytest.fail("\n".join(conformance.failure(found)), pytrace=False)
        if found.outcome in (EXCUSED, UNSERVED):
            pytest.skip(f"{found.outcome}: {found.reason}")
