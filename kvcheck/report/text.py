"""Numbers as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

WIDTH = 100
"""Columns that a report may use."""
NARROW = 80
"""Columns that it uses on any terminal."""


def columns(there: int) -> int:
    """How many columns of a terminal a report uses.

    >>> columns(60), columns(92), columns(200)
    (80, 92, 100)
    """
    return min(max(there, NARROW), WIDTH)


def colour(line: str) -> str:
    """The colour of a line of a report, "" for none: it repeats what the words say.

    >>> colour("fail: snapkv on mini"), colour("pass: snapkv on mini"), colour("a line")
    ('red', 'green', '')
    """
    words = set(re.split(r"[\s,:]+", line))
    if words & {"fail", "fails", "failed", "error"}:
        return "red"
    if words & {"inconclusive", "informative"}:
        return "yellow"
    return "green" if line.startswith("pass:") else ""


def points(value: float, sign: bool = True) -> str:
    """Points of accuracy, without a negative zero.

    >>> points(-0.0), points(2.04), points(-1.5)
    ('0.0', '+2.0', '-1.5')
    """
    rounded = round(value, 1) + 0.0
    if rounded == 0:
        return "0.0"
    return f"{rounded:+.1f}" if sign else f"{rounded:.1f}"


def interval(low: float, high: float, digits: int = 1) -> str:
    """An interval.

    >>> interval(-0.04, 12.3)
    '[0.0, 12.3]'
    """
    ends = (round(low, digits) + 0.0, round(high, digits) + 0.0)
    return f"[{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def between(low: float | None, high: float | None, identical: bool = False) -> str:
    """The cell of an interval: a word where there is nothing to be unsure of.

    >>> between(-37.4, 37.4, True), between(0, 1), between(None, None)
    ('identical', '[0.0, 1.0]', '')
    """
    if identical:
        return "identical"
    return "" if low is None or high is None else interval(low, high)


def size(count: float) -> str:
    """Bytes, in powers of ten.

    >>> size(512), size(4_190_000)
    ('512 B', '4.19 MB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f} B"


def seconds(value: float) -> str:
    """Seconds.

    >>> seconds(0.0041), seconds(2.5)
    ('4.1 ms', '2.50 s')
    """
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


def short(text: str, width: int) -> str:
    """A text that fits; the end of a longer one is replaced by three dots."""
    return text if len(text) <= width else text[: max(width - 3, 0)] + "..."


def wrap(text: str, indent: str = "  ", width: int = WIDTH) -> Iterator[str]:
    """A text over several lines; all but the first are indented."""
    import textwrap

    yield from textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def listed(words: Sequence[str]) -> str:
    """Words as in a sentence.

    >>> listed(["scores"]), listed(["scores", "nll", "KL"])
    ('scores', 'scores, nll and KL')
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, word: str) -> str:
    """A count with its word.

    >>> plural(1, "case"), plural(3, "case")
    ('1 case', '3 cases')
    """
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
