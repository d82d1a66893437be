"""`kvcheck report`: run files, or the records that ship, as text, Markdown, one HTML page, or a table for pandas."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvcheck.cli import options
from kvcheck.cli.checks import OK, coloured, show, width
from kvcheck.core import files
from kvcheck.core.errors import KvcheckError, SpecError

if TYPE_CHECKING:
    from kvcheck.core.record import Run
    from kvcheck.report.html.page import Compared
    from kvcheck.report.overview import Line
    from kvcheck.report.rows import References

PROMPTS = ("data", "text", "compat")
"""Options of pytest that decide which prompts a case has."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    report = commands.add_parser("report", help="show run files: verdicts, one table over methods, a page with plots")
    report.add_argument("run_files", type=Path, nargs="*", metavar="RUN.json", help="with two, --html compares them")
    report.add_argument(
        "--shipped", action="store_true", help="the records that ship with kvcheck, judged against fp16"
    )
    report.add_argument("--md", action="store_true", help="as Markdown")
    report.add_argument("--comment", action="store_true", help="as a comment on a pull request, at most 15 lines first")
    report.add_argument("--title", default="kvcheck", help="of the comment (default kvcheck)")
    report.add_argument("--html", type=Path, metavar="FILE", help="write one page with plots that needs nothing else")
    report.add_argument("--csv", type=Path, metavar="FILE", help="write a row per method and capability")
    report.add_argument("--parquet", type=Path, metavar="FILE", help="the same as Parquet")
    report.add_argument(
        "--sort", default="", metavar="COLUMN", help="method, drop, accuracy, bytes, ttft, tpot or a capability"
    )
    report.add_argument("-v", "--verbose", action="store_true", help="every method in full, not only what did not pass")
    report.add_argument(
        "--model", action="append", default=[], metavar="PATH", help="where a model lies whose name does not say it"
    )
    options.add(report, *PROMPTS)
    report.set_defaults(run=_report, spell=options.spelling(PROMPTS))


def _report(given: argparse.Namespace) -> int:
    from kvcheck.report import overview

    if bool(given.run_files) == given.shipped:
        raise SpecError("name run files, or --shipped", "kvcheck report run.json")
    runs = [_shipped()] if given.shipped else [read(path) for path in given.run_files]
    lines = overview.ordered((line for run, known in runs for line in overview.of(run, known)), given.sort)
    written = [_html(given, runs)] if given.html else []
    written += _tables(given, lines)
    if given.md or given.comment or not written:
        for run, known in runs:
            (show if given.md or given.comment else coloured)(_text(given, run, known))
    else:
        show(written)
    return OK


def read(path: Path) -> tuple[Run, References]:
    """A run with its fp16 records: those that it was judged by, as far as they are still there."""
    from kvcheck.cli.baselines import own_store
    from kvcheck.report import rows
    from kvcheck.store.baselines import ModelId, stored_fp16
    from kvcheck.store.run_file import read_run

    run = read_run(path)
    try:
        stored = stored_fp16(own_store(), ModelId.of(run.header.model_name, run.header.model), run.cases)
    except KvcheckError:  # a run of another model
        stored = {}
    return run, rows.references(run, stored)


def _shipped() -> tuple[Run, References]:
    from kvcheck.judging.shipped import shipped
    from kvcheck.report import rows

    run = shipped()
    return run, rows.references(run)


def _text(given: argparse.Namespace, run: Run, known: References) -> Sequence[str]:
    from kvcheck.report import comment, leaderboard, markdown, terminal

    if given.comment:
        return comment.text(run, known, given.title).splitlines()
    if given.shipped:
        return list(leaderboard.lines(run, known, given.sort, markdown=given.md))
    if given.md:
        return list(markdown.lines(run, known, sort=given.sort))
    return list(terminal.lines(run, known, verbose=given.verbose, sort=given.sort, width=width()))


def _html(given: argparse.Namespace, runs: Sequence[tuple[Run, References]]) -> str:
    """Write the page. Returns what is to be said of it."""
    from kvcheck.judging.rescoring import Prompts
    from kvcheck.report.html.page import page
    from kvcheck.store.baselines import ModelId

    settings = options.check(vars(given), PROMPTS)
    header = runs[-1][0].header
    prompts = Prompts(ModelId.of(header.model_name, header.model), settings, given.model)
    text = page(runs, _compared(runs), prompts, sort=given.sort)
    files.write_atomically(str(given.html), text)
    return f"{given.html}: one page, {len(text.encode()) / 1000:,.0f} kB; it needs nothing else"


def _compared(runs: Sequence[tuple[Run, References]]) -> Compared | None:
    """What differs between two runs."""
    if len(runs) != 2:
        return None
    from kvcheck.cli.old_runs import in_one_form
    from kvcheck.judging.compare import compare_runs
    from kvcheck.report.html.page import Compared, expect_one_model

    expect_one_model([run for run, _ in runs])
    before, after = in_one_form(*(run for run, _ in runs))
    return Compared(before, after, compare_runs(before, after))


def _tables(given: argparse.Namespace, lines: Sequence[Line]) -> list[str]:
    """Write --csv and --parquet. Returns what is to be said of them."""
    from kvcheck.report import columns

    said = []
    if given.csv:
        files.write_atomically(str(given.csv), columns.csv_text(lines))
        said.append(f"{given.csv}: written")
    if given.parquet:
        columns.write_parquet(given.parquet, lines)
        said.append(f"{given.parquet}: written")
    return said
