"""`--kv-zoo`: would the gate have caught known bugs on this model? The `kv_candidate` fixture and its table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvcheck import __version__
from kvcheck.core import env
from kvcheck.core.errors import BaselineError, KvcheckError, MethodUnsupported, SpecError
from kvcheck.core.escape import plain
from kvcheck.core.files import write_atomically
from kvcheck.core.record import SCHEMA, ZooRecord
from kvcheck.judging.allowances import shipped
from kvcheck.plugin import gate, state
from kvcheck.plugin.gathered import Gatherer
from kvcheck.plugin.taken import Taken
from kvcheck.plugin.timelimit import time_limit
from kvcheck.report import zoo
from kvcheck.store.run_file import dumps, zoo_from_json

if TYPE_CHECKING:
    from kvcheck.zoo.evaluate import Candidate, Evaluation

RESULT = "kvcheck_zoo"
NO_PLACE = "the fault has no place here"
EVALUATION: pytest.StashKey[Evaluation] = pytest.StashKey()


class KvCandidate(Taken):
    """One faulty method, or a correct one: `check(examine())`."""

    def __init__(self, request: pytest.FixtureRequest, candidate: Candidate) -> None:
        super().__init__(request)
        self.candidate = candidate

    def examine(self) -> ZooRecord:
        """Try properties and tasks on it, unless --kv-resume names a file that has the result.

        Skips a fault that has no place in the user's method.
        """
        found = known(self._config).get((self.candidate.name, self.candidate.counterpart))
        if found is None:
            try:
                with time_limit(self.settings.timeout):
                    found = self._evaluation().examine(self.candidate)
            except MethodUnsupported as error:
                pytest.skip(f"{NO_PLACE}: {error.message}")
            except (pytest.skip.Exception, pytest.xfail.Exception) as error:
                pytest.fail(f"{self.candidate.name} raised {type(error).__name__}: {error}", pytrace=False)
        self._node.user_properties.append((RESULT, dumps(found)))
        return found

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

    def _evaluation(self) -> Evaluation:
        """The gate of this process, made once."""
        from kvcheck.zoo.evaluate import Evaluation

        stash, session = self._config.stash, self._session
        if EVALUATION not in stash:
            stash[EVALUATION] = Evaluation(
                session, self.settings, gate.store(self._config), shipped(session.model_name)
            )
        return stash[EVALUATION]


def gatherer(config: pytest.Config) -> Gatherer[ZooRecord]:
    """Prints the table of all workers' results, and keeps them in --kv-json as they come, beside what is there already.

    Raises UsageError for a file of results of another state of the code or other settings.
    """
    path = state.settings(config).json
    kept, facts = dict(known(config)), header(config)

    def keep(found: list[ZooRecord]) -> None:
        kept.update({(one.name, one.counterpart): one for one in found})
        if path:
            write(Path(path), facts, kept.values())

    return Gatherer(config, RESULT, "the zoo", zoo_from_json, zoo.lines, zoo.markdown, keep)


Known = dict[tuple[str, str], ZooRecord]
KNOWN: pytest.StashKey[Known] = pytest.StashKey()


def known(config: pytest.Config) -> Known:
    """The results of --kv-resume by name and counterpart, read once. Raises UsageError for those of another state."""
    if KNOWN not in config.stash:
        path = state.settings(config).resume
        try:
            found = read(Path(path), header(config)) if path else []
        except KvcheckError as error:
            raise pytest.UsageError(f"kvcheck: {plain(error)}") from None
        config.stash[KNOWN] = {(one.name, one.counterpart): one for one in found}
    return config.stash[KNOWN]


def header(config: pytest.Config) -> dict[str, str]:
    """What results depend on: those of a file must agree in it."""
    settings = state.settings(config)
    chosen = (settings.lengths, settings.tasks, settings.modes, settings.n)
    return {
        **settings.texts(),
        "cases": json.dumps(chosen),
        "model": settings.model,
        "kvcheck": __version__,
        "commit": env.git_state(config.rootpath)[0],
    }


def write(path: Path, facts: dict[str, str], found: Iterable[ZooRecord]) -> None:
    """Write results, sorted, whole or not at all."""
    rows = ",\n".join(dumps(one) for one in sorted(found, key=lambda one: (one.correct, one.family, one.name)))
    write_atomically(str(path), f'{{"schema": {SCHEMA}, "header": {json.dumps(facts)}, "zoo": [\n{rows}\n]}}\n')


def read(path: Path, facts: dict[str, str]) -> list[ZooRecord]:
    """Read what `write` wrote; nothing where there is no file yet.

    Raises BaselineError for a damaged file, SpecError for one with other facts.
    """
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text("utf-8"))
        then, rows = content["header"], [zoo_from_json(json.dumps(row)) for row in content["zoo"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BaselineError(f"{path} is no whole file of results: {error}", "start with another file") from error
    for name, now in facts.items():
        if then.get(name) != now:
            raise SpecError(
                f"{path} holds results of {name}={then.get(name)}, this session has {name}={now}",
                "results of one file are of one state: give another file",
            )
    return rows
