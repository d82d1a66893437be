"""The page of a series of runs: plots over commits, and every run in a table, of the parts of a run's page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from kvcheck.judging.history import BETTER, WORSE, Series, ordered
from kvcheck.report import history
from kvcheck.report.history import Known, commit
from kvcheck.report.html import plots
from kvcheck.report.html.charts import NAME, UNKNOWN, Chart
from kvcheck.report.html.page import assets, environment
from kvcheck.report.html.plots import COLOURS
from kvcheck.report.overview import TIMED, Line
from kvcheck.report.table import Code, Table
from kvcheck.report.text import plural, short

TICKS = 6
"""Commits that an axis names."""
Value = Callable[[Line], "float | None"]
Lines = Mapping[str, Sequence[Line]]
"""By method, in its runs."""


def page(found: Sequence[Series], known: Known) -> str:
    """The page, which asks for nothing else."""
    runs = {id(each.run): each.run for one in found for each in one.points}
    last = found[0].points[-1].run.header
    worse = any(one.points[at].change == WORSE for one in found for at in one.changes[-1:])
    return environment().get_template("history.html").render(
        title=f"{plural(len(runs), 'run')} on {last.model_name}",
        outcome="fail" if worse else "pass",
        header=last,
        span=f"{history.name(found[0].points[0].run.header)} to {history.name(last)}",
        parts=[(one.method, history.told(one), history.table(one, known)) for one in found],
        charts=[chart for chart in _charts(found, known) if chart is not None],
        **assets(),
    )  # fmt: skip


def _charts(found: Sequence[Series], known: Known) -> Iterator[Chart | None]:
    """Accuracy, bytes and latency over the runs."""
    lines = {one.method: history.lines_of(one, known) for one in found}
    yield _over_runs(
        "accuracy", "Accuracy", "accuracy", found, lines, lambda line: line.whole.after if line.records else None
    )
    yield _over_runs("bytes", "KV bytes as a share of fp16's", "share", found, lines, lambda line: line.share)
    for what in TIMED:
        title = {"ttft": "Time to the first token", "tpot": "Time per decode step"}[what]
        yield _over_runs(what, f"{title}, as a ratio to fp16", "ratio", found, lines, _ratio(what))


def _ratio(what: str) -> Value:
    return lambda line: None if (timed := line.latency(what)) is None else timed.ratio


def _over_runs(name: str, title: str, unit: str, found: Sequence[Series], lines: Lines, value: Value) -> Chart | None:
    """A line per method over the runs; the runs in which one changed are ringed."""
    runs = ordered({id(each.run): each.run for one in found for each in one.points}.values())
    place = {id(run): float(at) for at, run in enumerate(runs)}
    every = max(1, -(-len(runs) // TICKS))
    texts = {float(at): commit(run.header)[:7] if at % every == 0 else "" for at, run in enumerate(runs)}
    series, body, changed = [], [], set[tuple[str, float]]()
    for at, one in enumerate(found):
        values = {place[id(line.run)]: v for line in lines[one.method] if (v := value(line)) is not None}
        kind = "ref" if one.method == "fp16" else f"s{at}" if at < COLOURS else "rest"
        shown = short(one.method, NAME)
        series.append(plots.Series(shown, tuple(sorted(values.items())), kind))
        changed |= {(shown, place[id(each.run)]) for each in one.points if each.change in (WORSE, BETTER)}
        body += [
            (Code(one.method), *(f"{values[at]:.4g}" if at in values else UNKNOWN for at in place.values()))
        ] * bool(values)
    tells = f"{title} of {plural(len(body), 'method')} in {plural(len(runs), 'run')}."
    plot = plots.lines(title, tells, series, ("commit", unit), x_texts=texts)
    if plot is None:
        return None
    drawn = {each.name: [at for at, _ in each.values] for each in series}
    marks = [
        replace(mark, kind=f"{mark.kind} changed")
        for trace in plot.traces
        for mark, at in zip(trace.marks, drawn[trace.name], strict=False)
        if (trace.name, at) in changed
    ]
    head = ("method", *(commit(run.header) for run in runs))
    note = "Ringed: a run in which a method got worse or better." if marks else ""
    return Chart(name, replace(plot, marks=tuple(marks)), Table(head, "<" + ">" * len(runs), body), note)
