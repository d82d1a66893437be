"""`--kv-zoo`: would the gate have caught known bugs on this model? The `kv_suspect` fixture and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvcheck.errors import BaselineError, KvcheckError
from kvcheck.files import write_atomically
from kvcheck.plugin import state
from kvcheck.plugin.gathered import Gatherer
from kvcheck.plugin.timelimit import time_limit
from kvcheck.record import SCHEMA, ZooRecord
from kvcheck.report import zoo
from kvcheck.runfile import dumps, zoo_from_json
from kvcheck.settings import Settings

if TYPE_CHECKING:
    from kvcheck.zoo.hunt import Hunt, Suspect

RESULT = "kvcheck_zoo"
HUNT: pytest.StashKey[Hunt] = pytest.StashKey()


def params(settings: Settings) -> list[Any]:
    """One parameter per bug and per correct twin. Raises CollectError for an unknown name."""
    from kvcheck.zoo.hunt import suspects

    try:
        found = list(suspects(settings.zoo, settings.methods))
    except KvcheckError as error:
        raise pytest.Collector.CollectError(f"kvcheck: {error}") from None
    return [pytest.param(one, id=f"{one.family}-{one.name}") for one in found]


class KvSuspect:
    """One faulty method, or a correct one: `check(examine())`."""

    def __init__(self, request: pytest.FixtureRequest, suspect: Suspect) -> None:
        self.suspect = suspect
        self._request = request
        self._settings = state.settings(request.config)

    def examine(self) -> ZooRecord:
        """Try properties and tasks on it, unless --kv-resume names a file that has the result."""
        found = self._known()
        if found is None:
            with time_limit(self._settings.timeout):
                found = self._hunt().examine(self.suspect)
        self._request.node.user_properties.append((RESULT, dumps(found)))
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

    def _known(self) -> ZooRecord | None:
        """The result of an earlier run."""
        path = self._settings.resume
        if path is None:
            return None
        known = [one for one in read(Path(path)) if (one.name, one.twin) == (self.suspect.name, self.suspect.twin)]
        return known[0] if known else None

    def _hunt(self) -> Hunt:
        """The gate of this process, made once."""
        from kvcheck.plugin import gate
        from kvcheck.zoo.hunt import Hunt

        config = self._request.config
        if HUNT not in config.stash:
            session = self._request.getfixturevalue("kv_session")
            config.stash[HUNT] = Hunt(session, self._settings, gate.store(config), gate.allowances(session.model_name))
        return config.stash[HUNT]


def gatherer(config: pytest.Config) -> Gatherer[ZooRecord]:
    """Prints the table of all workers' results, and keeps them in --kv-json as they come."""
    path = state.settings(config).json

    def keep(found: list[ZooRecord]) -> None:
        if path:
            write(Path(path), found)

    return Gatherer(config, RESULT, "the zoo", zoo_from_json, zoo.lines, zoo.markdown, keep)


def write(path: Path, found: list[ZooRecord]) -> None:
    """Write results, sorted, whole or not at all."""
    rows = ",\n".join(dumps(one) for one in sorted(found, key=lambda one: (one.correct, one.family, one.name)))
    write_atomically(str(path), f'{{"schema": {SCHEMA}, "zoo": [\n{rows}\n]}}\n')


def read(path: Path) -> list[ZooRecord]:
    """Read what `write` wrote; nothing where there is no file yet. Raises BaselineError for a damaged one."""
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text("utf-8"))["zoo"]
        return [zoo_from_json(json.dumps(row)) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise BaselineError(f"{path} is no whole file of results: {error}", "start without --kv-resume") from error
