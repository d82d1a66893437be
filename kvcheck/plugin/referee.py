"""Scores and verdicts once more, in a process in which no code of a method ever ran.

A method runs in the process that measures it and could, by accident or not, have changed what grades or judges there.
So where methods come from elsewhere, a fresh process reads the run file at the end: it makes the samples anew, grades
the answers, judges the records, and says what came out otherwise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import CaseRecord, Run
from kvcheck.core.settings import Settings
from kvcheck.plugin.sources import elsewhere
from kvcheck.store.run_file import loads, read_run, write_run

if TYPE_CHECKING:
    from kvcheck.plugin.gate import Gate

LIMIT = 1800.0
"""Seconds that it may take."""


def foreign(settings: Settings) -> bool:
    """Whether any method is not one of kvcheck's own."""
    return any(elsewhere(spec) for spec in settings.methods)


@dataclass(frozen=True)
class Asked:
    """What is to be found out. everything: of all methods, not only of those from elsewhere, since the engine is.

    root: of the repository. rejudge: by kvcheck's own judge, where no plugin has another. rescore: where kvcheck's own
    engine made the prompts.
    """

    root: str
    everything: bool
    rejudge: bool
    rescore: bool


def problems(run: Run, settings: Settings, asked: Asked) -> dict[str, str]:
    """What a fresh process finds otherwise than the run, by name of the case. Raises KvcheckError where it cannot."""
    with tempfile.TemporaryDirectory(prefix="kvcheck-") as folder:
        path = Path(folder) / "run.json"
        write_run(path, run)
        done = subprocess.run(
            [sys.executable, "-m", "kvcheck.plugin.referee"],
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            input=json.dumps({"run": str(path), "asked": asdict(asked), "settings": asdict(settings)}),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        raise KvcheckError(f"the answers could not be graded anew: {done.stderr.strip()[-500:]}") from None


def main() -> None:
    """Read what is asked from standard input, print what is wrong as JSON."""
    given = json.loads(sys.stdin.read())
    asked, settings = Asked(**given["asked"]), loads(Settings, json.dumps(given["settings"]))
    run = read_run(given["run"])
    found = dict(_judged(run, settings, asked)) if asked.rejudge else {}
    print(json.dumps(found | (dict(_graded(run, settings, asked)) if asked.rescore else {})))


def _theirs(run: Run, asked: Asked) -> list[CaseRecord]:
    """The records that are in question: by their specs, since the method's code need not be found here."""
    return [one for one in run.cases if one.samples and (asked.everything or elsewhere(one.method))]


def _graded(run: Run, settings: Settings, asked: Asked) -> Iterator[tuple[str, str]]:
    """Cases whose samples or scores come out otherwise."""
    from kvcheck.judging.rescoring import NotVerified, Rescorer
    from kvcheck.models import Loading
    from kvcheck.models.loading import encoder_of

    encoder, _ = encoder_of(settings.model, Loading(settings.rope, bool(settings.trust_remote_code)))
    rescorer = Rescorer(encoder, settings)
    for record in _theirs(run, asked):
        try:
            wrong = rescorer.problems(record)
        except NotVerified:  # images, which only the model can place
            continue
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            yield f"{record.case}|{record.method}", f"graded anew, {wrong[0]}{more}; a method must leave grading alone"


def _judged(run: Run, settings: Settings, asked: Asked) -> Iterator[tuple[str, str]]:
    """Cases whose verdicts come out otherwise."""
    from kvcheck.plugin.gate import Gate

    gate = Gate.of_run(run, settings, Path(asked.root))
    for record in _theirs(run, asked):
        name = f"{record.case}|{record.method}"
        said = {one.question: one.outcome for one in run.verdicts.get(name, ())}
        try:
            now = {one.question: one.outcome for one in gate.judge(record).verdicts}
        except KvcheckError as error:
            if name not in run.failures:
                yield name, f"judged anew, it fails: {error.message}"
            continue
        differ = [
            f"{what} is {now[what]}, not {said.get(what, 'judged')}" for what in now if now[what] != said.get(what)
        ]
        if differ and name not in run.failures:
            yield name, f"judged anew, {', '.join(differ)}; a method must leave judging alone"
    yield from pooled(run, gate, dict.fromkeys(one.method for one in _theirs(run, asked)))


def pooled(run: Run, gate: Gate, methods: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Verdicts on several cases that come out otherwise."""
    for method in methods:
        try:
            found = gate.pooled(one for one in run.cases if one.method == method)
        except KvcheckError:  # each case says it of itself
            continue
        for scope, verdicts in found.items():
            name = f"{scope}|{method}"
            now, said = ({one.question: one.outcome for one in each} for each in (verdicts, run.verdicts.get(name, ())))
            if now != said and name not in run.failures:
                yield name, f"judged anew, it is {now}, not {said}; a method must leave judging alone"


if __name__ == "__main__":
    main()
