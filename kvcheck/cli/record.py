"""`kvcheck baselines record`: a front of `pytest --kv-record` that chooses suites and tasks and prints the command."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from kvcheck.cli import options
from kvcheck.cli.checks import run_pytest, show
from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.core.front import option
from kvcheck.core.settings import OPTIONS

if TYPE_CHECKING:
    from kvcheck.core.record import CaseId
    from kvcheck.core.settings import Settings

ALL = "all"
FRONT = {"methods": "method", "model": "model", "tasks": "suite", "baselines": "to", "record": "record"}
"""Options of pytest that have an argument of their own here, with its name."""
NOT_HERE = ("findings", "zoo")
"""Options of pytest that measure something else."""
EPILOG = "Everything behind `--` goes to pytest as it is: `-- -n 2 -x`. It exits as pytest does; a bad name is 2."


def add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action. The options of pytest's command line are here without their `kv-`."""
    record = actions.add_parser("record", help="record baselines of a model (pytest --kv-record)", epilog=EPILOG)
    record.add_argument("--model", required=True, metavar="NAME", help="embedded model, path or hub id")
    record.add_argument(
        "--suite",
        required=True,
        metavar="NAME,…",
        help="scbench, longbench, ruler, …, a capability (`kvcheck tasks`), a task, or all generated ones: all",
    )
    record.add_argument("--method", action="append", metavar="SPEC,…", help="repeatable (default: fp16)")
    record.add_argument("--to", metavar="FOLDER", help="where to record (default: .kvcheck/baselines)")
    record.add_argument("--record", default="new", metavar="WHICH", help="new (default), changed or all")
    same = [name for name in OPTIONS if name not in (*FRONT, *NOT_HERE)]
    options.add(record, *same)
    record.add_argument("--dry-run", action="store_true", help="print the command, run nothing")
    record.add_argument("pytest", nargs="*", metavar="-- OPTION", help="options of pytest itself")
    front = {name: options.renamed(word) for name, word in FRONT.items()}
    record.set_defaults(run=_record, spell=options.spelling(same, **front))


def _record(given: argparse.Namespace) -> int:
    """What pytest exits with."""
    words = [*command(given), *given.pytest]
    show([f"pytest {shlex.join(words)}"])
    if given.dry_run:
        return 0
    return run_pytest(words)


def command(given: argparse.Namespace) -> list[str]:
    """The arguments of pytest. Raises SpecError and BaselineError for every name and value that pytest would refuse."""
    from kvcheck.core.spec import split_specs
    from kvcheck.models import names
    from kvcheck.plugin import cases, parse, refusals
    from kvcheck.plugin.options import words

    methods = [spec for text in given.method or ["fp16"] for spec in split_specs(text)]
    own: dict[str, object] = {"model": given.model, "methods": methods, "tasks": ",".join(tasks(given.suite))}
    own |= {"baselines": given.to, "record": given.record}
    passed = {name: own.get(name, getattr(given, name, None)) for name in OPTIONS}
    asked = {name: value for name, value in passed.items() if value is not None}
    project = parse.table(Path.cwd() / "pyproject.toml")
    source = {name: f"{parse.TABLE} {name}" for name in project} | {name: option(name) for name in asked}
    settings = parse.settings({**project, **asked}, source)
    refusals.recording_in_ci(settings)
    names.find(settings.model)
    refusals.known_place(settings)
    refusals.expect_room(settings, Path.cwd())
    _expect_data(settings)
    modules = [f"kvcheck.suites.test_{name}" for name in _capabilities(cases.cases(settings, None), settings)]
    return ["--pyargs", *modules, *words(asked)]


def tasks(suites: str) -> list[str]:
    """What --kv-tasks is given for suites: a family stands for itself, a capability and `all` for their tasks.

    Raises SpecError for an unknown name.
    """
    from kvcheck.core.record import CAPABILITIES
    from kvcheck.tasks import FAMILIES, PUBLIC, TASKS, members

    found: list[str] = []
    for word in (part.strip() for part in suites.split(",")):
        family = members(word.partition("/")[0])
        if word == ALL or word in CAPABILITIES:
            found += [name for name in TASKS.names() if word in (ALL, TASKS.get(name).info.capability)]
        elif members(word) or word in family or word in TASKS:
            found.append(word)
        else:
            known = family or [ALL, *CAPABILITIES, *FAMILIES, *PUBLIC, *TASKS.names()]
            raise SpecError(f"--suite: unknown suite {word!r}", did_you_mean(word, known))
    return list(dict.fromkeys(found))


def _expect_data(settings: Settings) -> None:
    """Refuse a public benchmark without a place to read it from, and a folder that is not there."""
    from kvcheck.tasks import PUBLIC

    public = [name for name in settings.tasks if name.partition("/")[0] in PUBLIC]
    if public and settings.data is None:
        raise SpecError(
            f"--suite: {public[0]} is read from a public data set", "say where: --data hub or --data FOLDER"
        )
    if settings.data not in (None, "hub") and not Path(str(settings.data)).expanduser().is_dir():
        raise SpecError(f"--data: there is no folder {settings.data}", "give hub, or a folder with the rows")


def _capabilities(cases: list[CaseId], settings: Settings) -> list[str]:
    """The capabilities of the cases, which the suites are named by. Raises SpecError where there is no case."""
    from kvcheck.core.record import CAPABILITIES
    from kvcheck.tasks import find

    if not cases:
        raise SpecError(f"--modes: no task of the suite runs in {', '.join(settings.modes)}", "leave out --modes")
    held = {find(case.task, settings.data, settings.compat).info.capability for case in cases}
    return [name for name in CAPABILITIES if name in held]
