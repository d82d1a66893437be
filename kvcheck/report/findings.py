"""What the papers found, as measured here: one line per number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from kvcheck.core.escape import markdown as escape
from kvcheck.report.text import WIDTH, columns, interval, short, wrap


@dataclass(frozen=True)
class Finding:
    """One measured number of a finding.

    claim: what the paper says. what: what the number is. mean: points of accuracy over n contexts, with the interval
    [low, high]. wanted: "> 0", "< 5", or "" where nothing is asserted. outcome: "shown", "not shown" or "measured".
    """

    claim: str
    what: str
    mean: float
    low: float
    high: float
    n: int
    wanted: str
    outcome: str

    def text(self) -> str:
        """As JSON, to ride on a test report."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Finding:
        """Read what `text` wrote."""
        return cls(**json.loads(text))


def lines(found: Sequence[Finding]) -> Iterator[str]:
    """For the terminal."""
    for claim in dict.fromkeys(one.claim for one in found):
        yield from wrap(claim, "  ")
        body = [("", "points", "95% interval", "asserted", "n", "")]
        body += [
            (f"  {one.what}", f"{one.mean:+.1f}", interval(one.low, one.high), one.wanted, str(one.n), one.outcome)
            for one in found
            if one.claim == claim
        ]
        yield from (short(line, WIDTH) for line in columns(body, "<><<><"))


def markdown(found: Sequence[Finding]) -> Iterator[str]:
    """A Markdown table."""
    yield "| finding | measured | points | 95 % interval | asserted | n | |"
    yield "|---|---|---:|---|---|---:|---|"
    for one in found:
        cells = (one.claim, one.what, f"{one.mean:+.1f}", interval(one.low, one.high), one.wanted, str(one.n))
        yield "| " + " | ".join(map(escape, (*cells, one.outcome))) + " |"
