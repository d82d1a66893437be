"""`--kv-zoo`: would the gate have caught known bugs on this model? The `kv_candidate` fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvcheck.core.errors import MethodUnsupported
from kvcheck.core.record import ZooRecord
from kvcheck.plugin import gate
from kvcheck.plugin.item import KvItem
from kvcheck.plugin.timelimit import time_limit
from kvcheck.store.journal import Ended

if TYPE_CHECKING:
    from kvcheck.zoo.evaluate import Candidate, Evaluation

EVALUATION: pytest.StashKey[Evaluation] = pytest.StashKey()


class KvCandidate(KvItem):
    """One faulty method, or a correct one: `check(examine())`."""

    def __init__(self, request: pytest.FixtureRequest, candidate: Candidate) -> None:
        super().__init__(request)
        self.candidate = candidate
        self._found: ZooRecord | None = None
        self._skipped = ""

    def examine(self) -> ZooRecord:
        """Try properties and tasks on it, unless --kv-resume names a file that has the result.

        Skips a fault that has no place in the user's method.
        """
        kept, name = self._state.kept, (self.candidate.name, self.candidate.counterpart)
        if kept is not None and name in kept.zoo and self.candidate.counterpart not in self._state.anew:
            self._found = kept.zoo[name]
            return self._found
        try:
            with time_limit(self.settings.timeout):
                self._found = self._evaluation().examine(self.candidate)
        except MethodUnsupported as error:
            self._skipped = f"the fault has no place here: {error.message}"
            pytest.skip(self._skipped)
        except (pytest.skip.Exception, pytest.xfail.Exception) as error:
            pytest.fail(f"{self.candidate.name} raised {type(error).__name__}: {error}", pytrace=False)
        return self._found

    def check(self, found: ZooRecord) -> None:
        """Fail for a bug that nothing caught, and for a correct method that was accused."""
        accused = [*found.properties, *found.cases]
        if found.correct and accused:
            pytest.fail("\n".join([f"{found.name} is correct, and was accused:", *accused]), pytrace=False)
        if not found.correct and not accused:
            pytest.fail(
                f"{found.name}: neither {found.samples} contexts nor {found.trials} trials of properties caught it",
                pytrace=False,
            )

    def _ended(self) -> Ended:
        """What rides on the report."""
        model = self._state.model
        return Ended(self.candidate.name, self.candidate.counterpart, model, zoo=self._found, skipped=self._skipped)

    def _evaluation(self) -> Evaluation:
        """The gate of this process, made once."""
        from kvcheck.zoo.evaluate import Evaluation

        stash, session = self._config.stash, self._engine
        if EVALUATION not in stash:
            stash[EVALUATION] = Evaluation(session, self.settings, gate.store(self._config))
        return stash[EVALUATION]
