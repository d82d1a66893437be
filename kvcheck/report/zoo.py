"""Whether the gate caught the bugs of the zoo, as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kvcheck.core.escape import markdown as escape
from kvcheck.core.record import BY_ANSWERS, BY_BYTES, BY_REFUSAL, ZooRecord
from kvcheck.report.table import Code, Table
from kvcheck.report.text import WIDTH, short, wrap

HEAD = ("family", "name", "in", "property", "tried", "case", "measured")


def rates(found: Sequence[ZooRecord]) -> Iterator[str]:
    """How many bugs were caught, how many correct methods were accused."""
    bugs, correct = [one for one in found if not one.correct], [one for one in found if one.correct]
    if bugs:
        ways = {
            "caught": sum(bool(one.properties or one.cases) for one in bugs),
            "by properties alone": sum(bool(one.properties) for one in bugs),
            "by the answers of tasks alone": sum(bool(one.shown_by(BY_ANSWERS)) for one in bugs),
        }
        yield f"{len(bugs)} bugs: {_shares(ways, len(bugs))}"
        others = {
            "by the audit or a crash": sum(bool(one.shown_by(BY_REFUSAL)) for one in bugs),
            "by bytes": sum(bool(one.shown_by(BY_BYTES)) for one in bugs),
            "in a way that the file does not say": sum(bool(one.cases and not one.ways) for one in bugs),
        }
        others = {way: count for way, count in others.items() if count}
        if others:
            yield f"in tasks, also or only: {_shares(others, len(bugs))}"
    if correct:
        accused = [one.name for one in correct if one.properties or one.cases]
        yield f"{len(correct)} correct methods: {len(accused)} accused{': ' + ', '.join(accused) if accused else ''}"


def _shares(counts: Mapping[str, int], of: int) -> str:
    return ", ".join(f"{count} ({100 * count / of:.0f} %) {way}" for way, count in counts.items())


def _cells(one: ZooRecord) -> tuple[str, ...]:
    """Name, counterpart, and per way: by what, after how much, in how many seconds."""
    way, where = _short(one.properties), _where(one)
    tried = f"{one.trials} trials, {one.property_seconds:.0f} s"
    measured = f"{one.samples} contexts, {one.case_seconds:.0f} s"
    nothing = one.correct and not one.samples and not one.cases  # it has no record that it could be held against
    return (one.name, way, tried, where, "not tried" if nothing else measured)


def _short(reasons: Sequence[str]) -> str:
    """What caught it, without the reason."""
    return reasons[0].partition(": ")[0].replace("_", " ") if reasons else "-"


def _where(one: ZooRecord) -> str:
    """The case that answers show it in; else the first one, with the way in which it was shown."""
    answers = one.shown_by(BY_ANSWERS)
    if answers or not one.ways:
        return _short((answers,) if answers else one.cases)
    return f"{one.ways[0]}: {_short(one.cases)}"


def lines(found: Sequence[ZooRecord]) -> Iterator[str]:
    """For the terminal, family by family."""
    for family in dict.fromkeys(one.family for one in found):
        yield family.replace("_", " ")
        for one in (one for one in found if one.family == family):
            name, way, tried, where, measured = _cells(one)
            yield short(f"  {name}", WIDTH)
            body = [(f"    properties: {way}", tried), (f"    tasks: {where}", measured)]
            yield from Table(("", ""), "<<", body).text()
    for line in rates(found):
        yield from wrap(line)


def markdown(found: Sequence[ZooRecord]) -> Iterator[str]:
    """Markdown tables: bugs, then correct methods."""
    yield from (f"{escape(line)}." for line in rates(found))
    for title, correct in (("Bugs", False), ("Correct methods", True)):
        mine = sorted((one for one in found if one.correct == correct), key=lambda one: (one.family, one.name))
        rows = []
        for one in mine:
            name, *rest = _cells(one)
            rows.append((one.family.replace("_", " "), name if one.url else Code(name), Code(one.counterpart), *rest))
        if rows:
            yield from ("", f"## {title}", "")
            yield from Table(HEAD, "<<<<<<<", rows, links={one.name: one.url for one in mine}).markdown()
