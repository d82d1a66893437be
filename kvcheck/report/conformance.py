"""What properties say of a method, as lines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kvcheck.core.escape import code
from kvcheck.core.record import EXCUSED, FAILS, HOLDS, UNSERVED, PropertyRecord
from kvcheck.report.table import Code, Table
from kvcheck.report.text import WIDTH, plural, wrap

if TYPE_CHECKING:
    from kvcheck.conformance.false_positives import Tried


TITLES = {FAILS: "fails", HOLDS: "holds, but", EXCUSED: "does not apply", UNSERVED: "skipped"}
"""By outcome, what stands before names and reasons; what simply holds has no reason."""
COUNTED = (EXCUSED, UNSERVED)
"""Outcomes that are told by their number alone, unless somebody asks."""


def failure(found: PropertyRecord) -> Iterator[str]:
    """What a test that fails says."""
    yield f"{found.method}: {words(found.name)} does not hold"
    yield f"  {found.reason}"
    if found.snippet:
        yield ""
        yield "  the smallest trial that was found, as a test:"
        yield ""
        yield textwrap.indent(found.snippet.rstrip(), "    ")


def words(name: str) -> str:
    """A property's name as words."""
    return f'"{name.replace("_", " ")}"'


def first(reason: str) -> str:
    """The first line of a reason; a file may hold one without any."""
    return next(iter(reason.splitlines()), "no reason given")


def counts(found: Sequence[PropertyRecord]) -> str:
    """ "36 of 41 properties hold, 4 do not apply, 1 not served"."""
    number = {outcome: sum(one.outcome == outcome for one in found) for outcome in (HOLDS, FAILS, EXCUSED, UNSERVED)}
    text = f"{number[HOLDS]} of {len(found)} properties hold"
    rest = ((FAILS, "fail"), (EXCUSED, "do not apply"), (UNSERVED, "skipped"))
    return ", ".join([text, *(f"{number[outcome]} {name}" for outcome, name in rest if number[outcome])])


def lines(found: Sequence[PropertyRecord], verbose: bool = True, width: int = WIDTH) -> Iterator[str]:
    """The summary, method by method: what fails; verbose: also every property that does not apply or was skipped, with
    the reason."""
    for method in dict.fromkeys(one.method for one in found):
        mine = [one for one in found if one.method == method]
        more = " (-v: which, and why)" if not verbose and any(one.outcome in COUNTED for one in mine) else ""
        yield from wrap(f"conformance of {method}: {counts(mine)}{more}", width=width)
        for outcome, title in TITLES.items():
            if verbose or outcome not in COUNTED:
                for reason, names in _by_reason(mine, outcome).items():
                    yield from wrap(f"  {title}: {', '.join(names)} ({first(reason)})", "    ", width)
        yield ""


def markdown(found: Sequence[PropertyRecord]) -> Iterator[str]:
    """The same for a Markdown summary."""
    for method in dict.fromkeys(one.method for one in found):
        mine = [one for one in found if one.method == method]
        yield f"- conformance of {code(method)}: {counts(mine)}"
        for one in mine:
            if one.outcome != HOLDS or one.reason:
                yield f"  - {code(words(one.name))}: {code(one.outcome)} ({code(first(one.reason))})"
    yield ""


def _by_reason(found: Sequence[PropertyRecord], outcome: str) -> dict[str, list[str]]:
    """Names in words by reason."""
    grouped: dict[str, list[str]] = {}
    for one in found:
        if one.outcome == outcome and (one.reason or outcome != HOLDS):
            grouped.setdefault(one.reason or "no reason given", []).append(words(one.name))
    return grouped


def _false_positives(tried: Sequence[Tried]) -> Table:
    """Every method with its false positives."""
    rows = []
    for method in dict.fromkeys(one.method for one in tried):
        mine = [one for one in tried if one.method == method]
        seconds = sum(one.seconds for one in mine) / len(mine)
        counted = (len(mine), sum(one.trials for one in mine), sum(len(one.false_positives) for one in mine))
        rows.append((Code(method), *(str(each) for each in counted), f"{seconds:.0f}"))
    return Table(("method", "seeds", "trials", "false positives", "seconds per seed"), "<>>>>", rows)


def false_positive_rate(tried: Sequence[Tried]) -> str:
    """ "0 false positives in 120,000 trials of 27 correct methods"."""
    count, trials = sum(len(one.false_positives) for one in tried), sum(one.trials for one in tried)
    methods = len({one.method for one in tried})
    return f"{plural(count, 'false positive')} in {trials:,} trials of {methods} correct methods"


def false_positives(tried: Sequence[Tried]) -> Iterator[str]:
    """Whether properties accuse correct methods, for the terminal; every false positive with its test."""
    yield from _false_positives(tried).text()
    for one in tried:
        for each in one.false_positives:
            yield ""
            yield f"seed {one.seed}:"
            yield from failure(each)
    yield ""
    yield false_positive_rate(tried)


def false_positives_markdown(tried: Sequence[Tried]) -> Iterator[str]:
    """The same as a Markdown table."""
    yield f"{false_positive_rate(tried)}."
    yield ""
    yield from _false_positives(tried).markdown()
    for one in tried:
        yield from (
            f"- {code(one.method)}, seed {one.seed}: {code(words(each.name))}: {code(each.reason)}"
            for each in one.false_positives
        )
