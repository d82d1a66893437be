"""What the papers found, as measured here: one line per number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvcheck.core.escape import markdown as escape
from kvcheck.core.record import Finding
from kvcheck.report.table import Table
from kvcheck.report.text import interval, wrap

HEAD = ("measured", "points", "95% interval", "asserted", "n", "")


def tables(found: Sequence[Finding]) -> Iterator[tuple[str, Table]]:
    """(what a paper says, the numbers that belong to it)."""
    for claim in dict.fromkeys(one.claim for one in found):
        rows = [
            (one.what, f"{one.mean:+.1f}", interval(one.low, one.high), one.wanted, str(one.n), one.outcome)
            for one in found
            if one.claim == claim
        ]
        yield claim, Table(HEAD, "<><<><", rows)


def lines(found: Sequence[Finding]) -> Iterator[str]:
    """For the terminal."""
    for claim, table in tables(found):
        yield from wrap(claim, "  ")
        yield from (f"  {line}" for line in table.text())


def markdown(found: Sequence[Finding]) -> Iterator[str]:
    """As Markdown."""
    for claim, table in tables(found):
        yield from (f"**{escape(claim)}**", "")
        yield from table.markdown()
