"""`kvcheck history`: runs one after the other, and the commit since which a method is worse. `kvcheck schema`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kvcheck.cli import options
from kvcheck.cli.checks import OK, REGRESSION, coloured, complain, show, width
from kvcheck.cli.report import read
from kvcheck.core import files

TAKEN = ("alpha",)
"""Options of `kvcheck history` that are pytest's."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands of this module."""
    history = commands.add_parser("history", help="a series of runs: since which commit is a method worse or better?")
    history.add_argument("run_files", type=Path, nargs="+", metavar="RUN.json", help="two or more, of one model")
    history.add_argument("--html", type=Path, metavar="FILE", help="write one page with plots that needs nothing else")
    history.add_argument(
        "--fail-on-regression", action="store_true", help="exit with 1 where a method is worse in the last run"
    )
    options.add(history, *TAKEN)
    history.set_defaults(run=_history, spell=options.spelling(TAKEN))
    schema = commands.add_parser("schema", help="the JSON Schema of run files (--kv-json)")
    schema.set_defaults(run=_schema)


def _history(given: argparse.Namespace) -> int:
    """1 where the last change of a method made it worse, and that is asked for."""
    from kvcheck.cli.old_runs import in_one_form
    from kvcheck.judging.history import WORSE, ordered, series
    from kvcheck.report import history
    from kvcheck.report.html.history import page

    settings = options.check(vars(given), TAKEN)
    read_in = [read(path) for path in given.run_files]
    runs = in_one_form(*(run for run, _ in read_in))
    known = {id(run): references for run, (_, references) in zip(runs, read_in, strict=True)}
    found = series(ordered(runs), settings.alpha)
    text = page(found, known) if given.html else ""
    if given.html:
        files.write_atomically(str(given.html), text)
    coloured(history.lines(found, known, width()))
    if given.html:
        show(["", f"{given.html}: one page, {len(text.encode()) / 1000:,.0f} kB; it needs nothing else"])
    worse = [one.method for one in found if one.changes and one.points[one.changes[-1]].change == WORSE]
    if given.fail_on_regression and worse:
        complain(f"worse: {', '.join(worse)}")
        return REGRESSION
    return OK


def _schema(given: argparse.Namespace) -> int:
    from kvcheck.store.schema import schema

    print(json.dumps(schema(), indent=1))
    return OK
