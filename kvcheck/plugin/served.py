"""The `kv_engine` fixture: tries one property of the cache's life in a real engine on one method's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from kvcheck.core.errors import MethodUnsupported
from kvcheck.core.record import EXCUSED, FAILS, HOLDS, UNSERVED, PropertyRecord
from kvcheck.plugin.conformance import KvProperty

if TYPE_CHECKING:
    from kvcheck.backends.engines.properties import Bench
    from kvcheck.runner.case import Runner

BENCHES: pytest.StashKey[dict[str, Bench]] = pytest.StashKey()
"""On the config: what was measured of a method before its first property."""


class KvEngine(KvProperty):
    """One property on one method: `check(examine())`."""

    def _tried(self) -> PropertyRecord:
        from kvcheck.backends.engines import properties

        bench, told = self._bench(), ""

        def run() -> tuple[str, str]:
            try:
                return HOLDS, properties.PROPERTIES[self.name](bench)
            except properties.Excused as why:
                return EXCUSED, str(why)
            except (properties.NotTried, MethodUnsupported) as why:
                return UNSERVED, str(why)
            except properties.Broken as why:
                return FAILS, str(why)

        found, told = self._attempt(run, self._problem)
        outcome, reason = found or (FAILS, told)
        return PropertyRecord(self.name, self.method, outcome, int(outcome in (HOLDS, FAILS)), reason)

    def _bench(self) -> Bench:
        from kvcheck.backends.engines.properties import Bench
        from kvcheck.backends.engines.session import EngineSession

        benches = self._config.stash.setdefault(BENCHES, {})
        if self.method not in benches:
            backend = cast("Runner", self._engine).backend
            if not isinstance(backend, EngineSession):
                pytest.fail(f"{self.method} is no engine of this session: a plugin opened {type(backend).__name__}")
            benches[self.method] = Bench(backend, self.method)
        return benches[self.method]
