"""Two runs side by side, as lines: which question was asked, the answer, and what differs."""

from __future__ import annotations

from collections.abc import Iterator

from kvcheck.core.record import Run
from kvcheck.judging.compare import Comparison
from kvcheck.report import rows, summary, verdict
from kvcheck.report.text import WIDTH, wrap
from kvcheck.report.verdict import References

LISTED = 12
"""Cases listed by name; the rest is counted."""
NOT_PAIRED = References(lost="missing or not comparable")


def lines(before: Run, after: Run, found: Comparison, width: int = WIDTH) -> Iterator[str]:
    """The outcome of every method first, then the questions, the tables, what was not compared, and what else differs
    between the two runs."""
    names = {mine: references(mine, other) for mine, other in found.pairs}
    for method in rows.methods(found.run):
        yield from verdict.of_method(found.run, method, names.get(method, NOT_PAIRED))
    if found.held:
        yield f"properties that held in the first run: {found.held} hold in the second"
    elif not found.run.cases:
        yield "fail: nothing was compared: the runs have no case in common"
    yield ""
    for mine, other in found.pairs:
        yield from wrap(question(mine, other), width=width)
    yield ""
    for mine, other in found.pairs:
        yield from _method(found, mine, other, width)
    yield from _not_compared(found.run, width)
    for name, run in (("before", before), ("after", after)):
        header = run.header
        model = f"{header.model_name} ({header.model})"
        when = f", {header.time[:16].replace('T', ' ')}" if header.time else ""
        branch = f" ({header.branch})" if header.branch else ""
        text = f"{name + ':':<8}{model}, kvcheck {header.kvcheck}, git {header.git[:12] or '-'}{branch}{when}"
        yield from wrap(text, " " * 8, width)
    for line in differences(before, after):
        yield from wrap(line, "  ", width)


def references(mine: str, other: str) -> References:
    """What the first run is called, in the place of the records that it stands for."""
    return References(fp16="the first run" if mine == other else other, own="the first run", lost=NOT_PAIRED.lost)


def question(mine: str, other: str) -> str:
    """What was asked of a method."""
    if mine == other:
        return f"question: is {mine} worse than before? The first run is taken for its own record."
    return f"question: does {mine} lose more than its budget against {other}? {other} is taken for fp16."


def _method(found: Comparison, mine: str, other: str, width: int) -> Iterator[str]:
    run, known = found.run, found.known[mine]
    records = rows.judged(run, mine)
    if not records:
        return
    yield from wrap(f"{mine}: {summary.count_text(run, mine)}", width=width)
    yield ""
    for table in summary.tables(run, records, known, "before -> after" if mine == other else "first -> second"):
        yield from table.text(width)
        yield ""
    held = [(known[one.case.key].memory, one.memory) for one in records]
    sizes = [(then.ratio, now.ratio) for then, now in held if then is not None and now is not None]
    if sizes:
        then, now = (sum(ratios) / len(sizes) for ratios in zip(*sizes, strict=True))
        yield f"KV bytes     ratio {then:.3f} -> {now:.3f} of a full cache"
    bad = rows.failed_verdicts(run, rows.of_method(run, mine))
    if bad:
        yield ""
        for table in summary.not_passed(bad[:LISTED], run.header.settings):
            yield from table.text(width)
        for one, why in bad[:LISTED]:
            if _told(why.question):
                yield from wrap(f"  {one.case.key}: {why.reason}", "    ", width)
        if len(bad) > LISTED:
            yield f"  and {len(bad) - LISTED} more"
    for line in summary.not_informative(run, records):  # of fp16 in the first run, or of what is taken for it
        yield from wrap(f"not informative: {line}", "  ", width)
    yield ""


def _told(question: str) -> bool:
    """Whether the reason of a verdict says more than its numbers."""
    return question in ("regression", "bytes")


def _not_compared(run: Run, width: int) -> Iterator[str]:
    """Cases without a verdict."""
    if run.failures:
        yield "not compared"
        for name, why in sorted(run.failures.items())[:LISTED]:
            case, _, method = name.partition("|")
            yield from wrap(f"  {case}  {method}: {why}", "    ", width)
        if len(run.failures) > LISTED:
            yield f"  and {len(run.failures) - LISTED} more"
        yield ""


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
            yield f"{what}: {', '.join(changed)}"
