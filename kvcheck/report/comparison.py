"""Two runs side by side, as lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvcheck.core.record import Run
from kvcheck.judging.compare import OUTCOMES, Row
from kvcheck.report.table import Table
from kvcheck.report.text import WIDTH, between, points, short

HEAD, ALIGN = ("before -> after", "drop", "interval", "KV ratio", "n", "outcome"), "<<><<><"


def lines(before: Run, after: Run, rows: Sequence[Row]) -> Iterator[str]:
    """What differs, the worst first; equal cases are counted only. Then every capability."""
    for name, run in (("before", before), ("after", after)):
        header = run.header
        model = f"{header.model_name} ({header.model})"
        yield short(f"{name + ':':<8}{model}, kvcheck {header.kvcheck}, git {header.git[:12] or '-'}", WIDTH)
    yield from differences(before, after)
    yield ""
    cases = [row for row in rows if row.capability == "" or not row.what.startswith(f"{row.capability} (")]
    whole = [row for row in rows if row not in cases]
    shown = sorted((row for row in cases if row.outcome != "same"), key=_urgency)
    if not rows:
        yield "nothing to compare: the runs have no case in common"
        return
    yield from Table(("capability", *HEAD), ALIGN, [cells(row) for row in whole]).text()
    yield ""
    if shown:
        yield from Table(("case", *HEAD), ALIGN, [cells(row) for row in shown]).text()
        for row in shown:
            if row.reason:
                yield short(f"  {row.what}: {row.reason}", WIDTH)
        yield ""
    counted = {name: sum(row.outcome == name for row in cases) for name in OUTCOMES}
    yield f"{len(cases)} cases: " + ", ".join(f"{count} {name}" for name, count in counted.items() if count)


def differences(before: Run, after: Run) -> Iterator[str]:
    """What the two runs did not have in common, for whoever wonders why numbers moved."""
    for what in ("packages", "machine", "settings"):
        old, new = getattr(before.header, what), getattr(after.header, what)
        changed = [
            f"{name} {old.get(name, '-')} -> {new.get(name, '-')}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        if changed:
            yield short(f"{what}: {', '.join(changed)}", WIDTH)


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    before, after = ("  ?  " if value is None else f"{value:.3f}" for value in (row.before, row.after))
    drop = "" if row.drop is None else points(row.drop)
    unchanged = row.outcome == "same" and not row.lost and not row.won
    sure = "no score changed" if unchanged else between(row.low, row.high)
    ratio = "" if row.ratio_after is None else f"{row.ratio_after:.3f}"
    if row.ratio_before is not None and row.ratio_after is not None and row.ratio_before != row.ratio_after:
        ratio = f"{row.ratio_before:.3f} -> {ratio}"
    return (f"{row.what} {row.method}", f"{before} -> {after}", drop, sure, ratio, str(row.n), row.outcome)


def _urgency(row: Row) -> tuple[int, float]:
    order = ("worse", "missing", "not comparable", "inconclusive", "better")
    return order.index(row.outcome) if row.outcome in order else len(order), -(row.drop or 0)
