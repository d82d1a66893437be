"""A series of runs as lines: what changed, since which commit, then every run with its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kvcheck.core.escape import plain
from kvcheck.core.record import RUN, RunHeader
from kvcheck.judging.history import BETTER, SAME, WORSE, Point, Series
from kvcheck.report import verdict
from kvcheck.report.overview import TIMED, Line
from kvcheck.report.rows import References
from kvcheck.report.table import Table
from kvcheck.report.text import WIDTH, interval, plural, short, wrap

COMMIT = 9
"""Letters of a commit."""
SHOWN = 3
"""Scores that a line tells of a change."""
Known = Mapping[int, References]
"""fp16 records of each run, by its identity (id)."""


def lines(found: Sequence[Series], known: Known, width: int = WIDTH) -> Iterator[str]:
    """For the terminal: the outcome of every method first."""
    for one in found:
        for outcome, text, command in told(one):
            yield from wrap(plain(f"{outcome}: {one.method} on {_model(one)}: {text}"), width=width)
            yield from [f"  {plain(command)}"] if command else []
    for one in found:
        yield ""
        yield from wrap(plain(f"{one.method} on {_model(one)}"), width=width)
        yield from map(plain, table(one, known).text(width))
    moved = sorted({each for one in found for each in machines(one)})
    if moved:
        yield ""
        yield from wrap(plain(f"the machine was not the same throughout: {', '.join(moved)}"), width=width)


def _model(one: Series) -> str:
    return one.points[-1].run.header.model_name


def told(one: Series) -> list[tuple[str, str, str]]:
    """(outcome, what changed since when, a command that lists the commits) of every change, the latest first."""
    first, last = one.points[0].run.header, one.points[-1].run.header
    if not one.changes:
        same = all(each.change == SAME for each in one.points[1:])
        what = "the same in" if same else "no change is shown in"
        return [(verdict.PASS, f"{what} {plural(len(one.points), 'run')}, {name(first)} to {name(last)}", "")]
    found = []
    for at in reversed(one.changes):
        point, before = one.points[at], one.points[at - 1].run.header
        here, outcome = point.run.header, verdict.FAIL if point.change == WORSE else verdict.PASS
        between = before.git and here.git and before.git != here.git
        command = f"git log {before.git[:COMMIT]}..{here.git[:COMMIT]}" if between else ""
        found.append((outcome, f"{point.change} since {name(here)}: {why(one, point)}", command))
    return found


def name(header: RunHeader) -> str:
    """A run by its commit, branch and day: "1a2b3c4d5 (main, 2026-11-28)"."""
    more = ", ".join(one for one in (header.branch, header.time[:10]) if one)
    return f"{commit(header)} ({more})" if more else commit(header)


def commit(header: RunHeader) -> str:
    """A commit in few letters, with a plus where files differed from it."""
    return f"{header.git[:COMMIT]}{'+' * header.dirty}" if header.git else "no commit"


def why(one: Series, point: Point) -> str:
    """The numbers of a change."""
    own = verdict.References(own=commit(one.points[point.since].run.header))
    sizes = [each for _, each in point.shown if each.question == "bytes"]
    scores = [(scope, each) for scope, each in point.shown if each.question != "bytes"]
    texts = ["" if scope == RUN else f"{scope}: " for scope, _ in scores[:SHOWN]]
    texts = [text + verdict.number(each, {}, own) for text, (_, each) in zip(texts, scores, strict=False)]
    texts += [f"and {len(scores) - SHOWN} more"] if len(scores) > SHOWN else []
    if sizes:
        first, more = sizes[0], f" in {plural(len(sizes), 'case')}" if len(sizes) > 1 else ""
        texts.append(f"KV bytes {first.limit:.4f} -> {first.value:.4f} of fp16's{more}")
    if point.timed is not None:
        then, now = point.timed
        texts.append(f"{now.what} {then.ratio:.2f} -> {now.ratio:.2f} x fp16 {interval(now.low, now.high, 2)}")
    return "; ".join(texts)


def table(one: Series, known: Known) -> Table:
    """Every run of a method: its numbers, and how it stands to the run that it was held against."""
    told = lines_of(one, known)
    body, timed = [], [what for what in TIMED if any(line.latency(what) for line in told)]
    for each, line in zip(one.points, told, strict=True):
        header = each.run.header
        gap, row = line.gap, line.whole if line.records else None
        against = commit(one.points[each.since].run.header) if each is not one.points[0] else ""
        body.append(
            (
                commit(header),
                header.time[:16].replace("T", " "),
                short(header.branch, 20),
                "" if row is None or row.after is None else f"{row.after:.3f}",
                "" if gap is None else f"{gap.drop:+.1f}",
                "" if line.share is None else f"{line.share:.3f}",
                *(f"{ratio.ratio:.2f}" if (ratio := line.latency(what)) else "" for what in timed),
                each.change + (f" than {against}" if each.change in (WORSE, BETTER) else ""),
                str(line.contexts),
            )
        )
    head = ("commit", "time (UTC)", "branch", "accuracy", "drop", "bytes", *timed, "change", "n")
    return Table(head, "<<<>>>" + ">" * len(timed) + "<>", body, spare=(len(head) - 1, 2, 4))


def lines_of(one: Series, known: Known) -> list[Line]:
    """The method in each of its runs."""
    return [Line(each.run, one.method, known.get(id(each.run), {})) for each in one.points]


def machines(one: Series) -> set[str]:
    """What differs between the machines of its runs."""
    found = [each.run.header.machine for each in one.points]
    return {key for machine in found for key in machine if any(other.get(key) != machine[key] for other in found)}
