"""A run as lines for the terminal: 80 to 100 columns, and no meaning in colour alone."""

from __future__ import annotations

from collections.abc import Iterator

from kvcheck.core.escape import plain
from kvcheck.core.record import Run
from kvcheck.report import conformance, findings, overview, rows, statement, summary, verdict, zoo
from kvcheck.report.rows import References
from kvcheck.report.text import WIDTH, plural, short, wrap
from kvcheck.store.published import gaps

LISTED = 12
"""Cases listed by name; the rest is counted."""


def lines(
    run: Run,
    stored: References | None = None,
    *,
    verbose: bool = False,
    sort: str = "",
    width: int = WIDTH,
    full: str = "-v",
) -> Iterator[str]:
    """The summary of a run, foreign text in it made harmless.

    stored: fp16 records by case key, for what the run itself did not measure. verbose: every method in full, else of
    several those that did not pass; and every property that was skipped. sort: a column of the table over methods.
    width: columns, see text.columns. full: what to type to see all of it.
    """
    yield from map(plain, _lines(run, rows.references(run, stored), verbose, sort, width, full))


def _lines(run: Run, known: References, verbose: bool, sort: str, width: int, full: str) -> Iterator[str]:
    first = list(verdict.lines(run))
    yield from [*first, ""] if first else ()
    methods = rows.methods(run)
    found = overview.ordered(overview.of(run, known), sort)
    if len(found) > 1:
        for table in overview.narrow(found):
            yield from table.text(width)
            yield ""
        for line in overview.legend(found):
            yield from wrap(line, width=width)
        yield ""
    brief = [] if verbose or len(methods) == 1 else [one for one in methods if _passed(run, one)]
    for method in methods:
        if method not in brief:
            yield from of_method(run, method, known, width)
    for method in brief:
        yield from _headed(run, method, width)
    yield from [f"in full: {full}", ""] if brief else ()
    yield from failures(run, width)
    yield from conformance.lines(run.properties, verbose, width)
    yield from zoo.lines(run.zoo)
    yield from findings.lines(run.findings)


def _passed(run: Run, method: str) -> bool:
    """Whether there is nothing to explain. fp16 beside other methods is their reference."""
    outcome = verdict.standing(run, method).outcome
    return outcome == verdict.PASS or (method == "fp16" and outcome == verdict.OPEN)


def _headed(run: Run, method: str, width: int) -> Iterator[str]:
    """A method and how its cases ended."""
    yield from wrap(f"{method} on {run.header.model_name}: {summary.count_text(run, method)}", width=width)


def of_method(run: Run, method: str, known: References, width: int = WIDTH) -> Iterator[str]:
    """Everything about one method."""
    records, judged = rows.of_method(run, method), rows.judged(run, method)
    yield from _headed(run, method, width)
    yield ""
    for table in summary.tables(run, judged, known) if judged else ():
        yield from table.text(width)
        yield ""
    for line in summary.facts(run, records, known):
        yield from wrap(line, " " * 13, width)
    found = rows.failed_verdicts(run, records)
    if found:
        yield ""
        for table in summary.not_passed(found[:LISTED], run.header.settings):
            yield from table.text(width)
        if len(found) > LISTED:
            yield f"  and {len(found) - LISTED} more"
        yield from wrap(f"  {summary.inconclusive(found)}", width=width)
        yield ""
    floor = list(summary.not_informative(run, records))
    if floor:
        yield ""
        yield "not informative: no loss of accuracy can show there, their scores are left out"
        for line in floor:
            yield from wrap(f"  {line}", "    ", width)
    unmeasured = rows.not_measured(run, records)
    if unmeasured:
        yield ""
        yield "not measured"
        for what, names in sorted(unmeasured.items()):
            yield from wrap(f"  {what} ({plural(len(names), 'case')})", "    ", width)
        yield ""
    for line in gaps(records, run.header.model_name):
        yield from wrap(line, width=width)
    yield from wrap(statement.plain(run, method, known), width=width)
    yield ""


def failures(run: Run, width: int = WIDTH) -> Iterator[str]:
    """Cases that failed before there was a verdict."""
    lost = rows.errors(run)
    if lost:
        shown: list[str] = []
        yield "failed without a verdict"
        for name, text in list(lost.items())[:LISTED]:
            case, _, method = name.partition("|")
            yield short(f"  {case}  {method}", width)
            yield from wrap(f"    {rows.reason(text)}", "    ", width)
            hints = rows.remedy(text)
            for hint in hints if hints != shown else ():  # cases that lack the same thing stand together
                said = f"      {hint}"
                yield from [said] if "pytest " in hint else wrap(said, "      ", width)  # commands are to be copied
            shown = hints
        if len(lost) > LISTED:
            yield f"  and {len(lost) - LISTED} more"
        yield ""
