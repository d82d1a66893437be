"""What properties say of a method, as lines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from kvcheck.record import EXCUSED, FAILS, HOLDS, UNSERVED, PropertyRecord
from kvcheck.report.text import wrap


def failure(found: PropertyRecord) -> Iterator[str]:
    """What a test that fails says."""
    yield f"{found.method}: {words(found.name)} does not hold"
    yield f"  {found.reason}"
    if found.snippet:
        yield ""
        yield "the smallest trial that was found, as a test:"
        yield ""
        yield textwrap.indent(found.snippet.rstrip(), "    ")


def words(name: str) -> str:
    """A property's name as words."""
    return f'"{name.replace("_", " ")}"'


def counts(found: Sequence[PropertyRecord]) -> str:
    """ "36 of 41 properties hold, 4 do not apply, 1 not served"."""
    number = {outcome: sum(one.outcome == outcome for one in found) for outcome in (HOLDS, FAILS, EXCUSED, UNSERVED)}
    text = f"{number[HOLDS]} of {len(found)} properties hold"
    rest = ((FAILS, "fail"), (EXCUSED, "do not apply"), (UNSERVED, "could not be tried"))
    return ", ".join([text, *(f"{number[outcome]} {name}" for outcome, name in rest if number[outcome])])


def lines(found: Sequence[PropertyRecord]) -> Iterator[str]:
    """The summary, method by method: what fails, and every opt-out with its reason."""
    for method in dict.fromkeys(one.method for one in found):
        mine = [one for one in found if one.method == method]
        yield from wrap(f"conformance of {method}: {counts(mine)}")
        for outcome, title in ((FAILS, "fails"), (EXCUSED, "does not apply"), (UNSERVED, "could not be tried")):
            for reason, names in _by_reason(mine, outcome).items():
                yield from wrap(f"  {title}: {', '.join(names)} ({reason.splitlines()[0]})", "    ")
        yield ""


def markdown(found: Sequence[PropertyRecord]) -> Iterator[str]:
    """The same for a Markdown summary."""
    for method in dict.fromkeys(one.method for one in found):
        mine = [one for one in found if one.method == method]
        yield f"- conformance of `{method}`: {counts(mine)}"
        for one in mine:
            if one.outcome != HOLDS:
                yield f"  - {words(one.name)}: {one.outcome} ({one.reason.splitlines()[0]})"
    yield ""


def _by_reason(found: Sequence[PropertyRecord], outcome: str) -> dict[str, list[str]]:
    """Names in words by reason."""
    grouped: dict[str, list[str]] = {}
    for one in found:
        if one.outcome == outcome:
            grouped.setdefault(one.reason or "no reason given", []).append(words(one.name))
    return grouped
