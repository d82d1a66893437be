"""What the plots and coloured tables of the page show, method by method. The tables behind plots have every number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvcheck.core.record import CaseRecord, TurnRecord
from kvcheck.report import overview, rows
from kvcheck.report.html.plots import COLOURS, Plot, Point, Series, lines, scatter
from kvcheck.report.overview import Line
from kvcheck.report.table import Code, Table
from kvcheck.report.text import interval, points, seconds, short, size

DROPS = (0.5, 2.0, 5.0, 15.0, 30.0)
"""Ends, in points, of the classes that a drop is coloured by."""
DEPTHS = 10
"""Slices of a context."""
NAME = 20
"""Letters of a method's name in a plot."""
UNKNOWN = "–"


@dataclass(frozen=True)
class Chart:
    """A plot with the table behind it. note: what is to be known before it is read."""

    name: str
    plot: Plot
    table: Table
    note: str = ""


class Cell(NamedTuple):
    """A coloured number. kind: a class of the style sheet; tells: what is said when it is pointed at."""

    text: str
    kind: str = ""
    tells: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of coloured numbers."""

    title: str
    corner: str
    heads: Sequence[str]
    body: Sequence[tuple[str, Sequence[Cell]]]


def kinds(methods: Sequence[Line]) -> dict[str, str]:
    """The kind of each method's lines, the same in every plot: of many methods some are named, from the one that gives
    up least to the one that gives up most."""
    names = [line.method for line in overview.ordered(methods, "drop") if line.method != "fp16"]
    most = len(names) - 1
    count = min(COLOURS, len(names))
    named = [names[round(at * most / max(1, count - 1))] for at in range(count)]
    return {"fp16": "ref", **{name: f"s{at}" for at, name in enumerate(named)}}


def accuracy_and_bytes(methods: Sequence[Line]) -> Chart | None:
    """Accuracy against KV bytes of all methods, with the Pareto front."""
    found = [(line, line.share, line.whole) for line in methods if line.records and line.share is not None]
    spots, body = [], []
    for line, share, row in found:
        if row.after is None or share is None:
            continue
        gap, before = line.gap, row.before
        low, high = (before - gap.high / 100, before - gap.low / 100) if gap and before is not None else (None, None)
        kind = "ref" if line.method == "fp16" else "host" if line.host else ""
        spots.append(Point(short(line.method, NAME), share, row.after, low, high, kind))
        sure = "" if gap is None else interval(gap.low, gap.high)
        drop = "" if gap is None else points(gap.drop)
        body.append((Code(line.method), f"{row.after:.3f}", drop, sure, f"{share:.3f}", str(row.n)))
    if not spots:
        return None
    if not any(one.name == "fp16" for one in spots) and (before := found[0][2].before) is not None:
        spots.append(Point("fp16", 1.0, before, kind="ref"))
    head = ("method", "accuracy", "drop", "95% interval", "KV bytes / fp16", "contexts")
    tells = f"Accuracy of {len(spots)} methods over their KV bytes as a share of fp16's; every number is in the table."
    plot = scatter("Accuracy against KV bytes", tells, spots, "KV bytes as a share of fp16's", "accuracy")
    note = "Up and to the left is better. Filled: on the Pareto front. Bars: 95% intervals of the drop against fp16."
    if any(line.host for line in methods):
        note += " Dashed: it keeps more in host memory, which these bytes leave out; no part of the front."
    if len({row.n for _, _, row in found}) > 1:
        note += " Not all methods were measured on the same contexts."
    return Chart("accuracy", plot, Table(head, "<>><>>", body), note)


def by_capability(methods: Sequence[Line]) -> Grid | None:
    """Method x capability: accuracy, coloured by the drop against fp16."""
    names = overview.capabilities(methods)
    body = [
        (line.method, [_scored(line.whole), *(_scored(line.capabilities.get(name)) for name in names)])
        for line in methods
        if line.records
    ]
    heads = ["all", *(name.replace("_", " ") for name in names)]
    return Grid("Accuracy by capability", "method", heads, body) if body else None


def _scored(row: rows.Row | None) -> Cell:
    if row is None or row.after is None:
        return Cell(UNKNOWN)
    if row.floor:
        return Cell(f"{row.after:.3f}", "", "not informative: no loss can show here")
    if row.drop is None or row.low is None or row.high is None:
        return Cell(f"{row.after:.3f}", "", f"{row.n} contexts; no fp16 record of them")
    told = f"fp16 {row.before:.3f}, drop {points(row.drop)} points {interval(row.low, row.high)}, {row.n} contexts"
    return Cell(f"{row.after:.3f}", drop_class(row.drop), told)


def drop_class(drop: float) -> str:
    """The class of a drop in points: d0 (none) to d5.

    >>> drop_class(-1), drop_class(2.5), drop_class(93)
    ('d0', 'd2', 'd5')
    """
    return f"d{sum(drop > end for end in DROPS)}"


def by_turn(methods: Sequence[Line]) -> Chart | None:
    """Accuracy turn by turn in multi-turn mode, of the same contexts of fp16 too."""
    kind = kinds(methods)
    found: dict[str, list[float]] = {}
    for line in methods:
        records = rows.informative(line.run, line.records)
        if len(turns := rows.turns(records)) > 1:
            before = rows.turns_before(records, line.known)
            if len(before) == len(turns):
                found.setdefault("fp16", before)
            found[line.method] = turns
    if not found:
        return None
    count = max(map(len, found.values()))
    texts = {float(at): str(at) for at in range(1, count + 1)}
    series = [
        Series(short(name, NAME), tuple((at + 1.0, value) for at, value in enumerate(values)), kind.get(name, "rest"))
        for name, values in found.items()
    ]
    tells = f"Accuracy of {len(found)} methods at each of {count} turns."
    plot = lines("Accuracy by turn", tells, series, ("turn", "accuracy"), x_texts=texts, ends=(0.0, 1.02))
    body = [(Code(name), *_filled([f"{value:.3f}" for value in values], count)) for name, values in found.items()]
    head = ("method", *(f"turn {at}" for at in range(1, count + 1)))
    return None if plot is None else Chart("turns", plot, Table(head, "<" + ">" * count, body), "Multi-turn mode.")


def _filled(cells: list[str], count: int) -> list[str]:
    return cells + [UNKNOWN] * (count - len(cells))


def by_depth(methods: Sequence[Line]) -> list[Grid]:
    """A heat map per method: accuracy by length and the place of the evidence, of needle tasks where there are any."""
    needles = any(one.capability == "needle" for line in methods for one in line.records)
    grids = []
    for line in methods:
        chosen = [one for one in line.records if one.scored and (one.capability == "needle" or not needles)]
        scores: dict[tuple[int, int], list[float]] = {}
        for record in chosen:
            for turn in (turn for sample in record.samples for turn in sample.turns):
                if turn.depth is not None:
                    at = min(int(turn.depth * DEPTHS), DEPTHS - 1)
                    scores.setdefault((record.case.length, at), []).append(turn.score)
        if not scores:
            continue
        heads = [f"{100 * at // DEPTHS}%" for at in range(DEPTHS)]
        body = [
            (f"{length:,}", [_heat(scores.get((length, at), [])) for at in range(DEPTHS)])
            for length in sorted({length for length, _ in scores})
        ]
        grids.append(Grid(line.method, "tokens", heads, body))
    return grids


def _heat(scores: Sequence[float]) -> Cell:
    if not scores:
        return Cell("")
    mean = sum(scores) / len(scores)
    return Cell(f"{mean:.2f}", f"h{round(mean * 10)}", f"{len(scores)} answers")


class Drift(NamedTuple):
    """Means over the turns of both: rise of nll against fp16 (nats per token), KL (nats), top-1 agreement."""

    nll: float | None
    kl: float | None
    agree: float | None


def drift(line: Line, records: Iterable[CaseRecord]) -> Drift:
    """Drift from fp16 over records."""
    rises, found = list[float](), list[TurnRecord]()
    for record in records:
        for then, now in rows.pairs(record, line.known):
            both = zip(then.turns, now.turns, strict=False)
            rises += [two.nll - one.nll for one, two in both if one.nll is not None and two.nll is not None]
        found += [turn for sample in record.samples for turn in sample.turns]
    return Drift(
        _mean(rises),
        _mean([turn.kl for turn in found if turn.kl is not None]),
        _mean([turn.agree for turn in found if turn.agree is not None]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def by_length_drift(methods: Sequence[Line]) -> list[Chart]:
    """Rise of nll, and KL, by length."""
    found = {
        line.method: {length: drift(line, mine) for length, mine in _by_length(line.records).items()}
        for line in methods
        if line.method != "fp16"
    }
    whats: tuple[tuple[str, str, str, Callable[[Drift], float | None]], ...] = (
        ("nll", "Rise of nll against fp16", "nats per token", lambda one: one.nll),
        ("kl", "KL divergence from fp16", "nats", lambda one: one.kl),
    )
    charts = []
    for name, title, unit, value in whats:
        values = {method: {at: v for at, one in mine.items() if (v := value(one)) is not None}
                  for method, mine in found.items()}  # fmt: skip
        charts.append(_over_lengths(name, title, unit, values, kinds(methods), told="{:.4f}".format))
    return [one for one in charts if one is not None]


def by_task_drift(methods: Sequence[Line]) -> Table | None:
    """nll and KL by task, where the method differs from fp16 at all."""
    body = []
    for line in methods:
        tasks = sorted({record.case.task for record in line.records})
        for task in tasks if line.method != "fp16" else ():
            one = drift(line, [record for record in line.records if record.case.task == task])
            if any(value is not None for value in one):
                nll, kl, agree = one
                texts = ("" if nll is None else f"{nll:+.4f}", _digits(kl, 4), _digits(agree, 3))
                body.append((Code(line.method), task, *texts))
    return Table(("method", "task", "nll - fp16's", "KL", "top-1 agreement"), "<<>>>", body) if body else None


def _digits(value: float | None, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def _by_length(records: Iterable[CaseRecord]) -> dict[int, list[CaseRecord]]:
    found: dict[int, list[CaseRecord]] = {}
    for record in records:
        found.setdefault(record.case.length, []).append(record)
    return dict(sorted(found.items()))


def costs(methods: Sequence[Line]) -> list[Chart]:
    """KV bytes per context, and seconds of a decode step, by length; fp16 beside them."""
    held: dict[str, dict[int, float]] = {}
    for line in methods:
        for length, records in _by_length(rows.of_method(line.run, line.method)).items():
            memory = [one.memory for one in records if one.memory is not None]
            if memory:
                held.setdefault("fp16", {})[length] = sum(one.dense_bytes for one in memory) / len(memory)
                if line.method != "fp16":
                    held.setdefault(line.method, {})[length] = sum(one.kv_bytes for one in memory) / len(memory)
    charts = [
        _over_lengths("bytes", "KV bytes per context", "MB", held, kinds(methods), scale=1e6, least=0.0, told=size)
    ]
    for what, title in (("tpot", "Time per decode step"), ("ttft", "Time to first token")):
        timed: dict[str, dict[int, float]] = {}
        for line in methods:
            for one in (one for record in rows.of_method(line.run, line.method) for one in record.latency):
                if one.what == what:
                    timed.setdefault("fp16", {}).setdefault(one.length, one.fp16_seconds)
                    if line.method != "fp16":
                        timed.setdefault(line.method, {})[one.length] = one.seconds
        charts.append(_over_lengths(what, title, "ms", timed, kinds(methods), scale=1e-3, least=0.0, told=seconds))
    return [one for one in charts if one is not None]


def _over_lengths(
    name: str,
    title: str,
    unit: str,
    values: dict[str, dict[int, float]],
    kind: dict[str, str],
    *,
    scale: float = 1.0,
    least: float | None = None,
    told: Callable[[float], str],
) -> Chart | None:
    """Lines over lengths. scale: a unit of the axis in units of the values. told: a value as the table has it."""
    lengths = sorted({length for mine in values.values() for length in mine})
    series = [
        Series(
            short(method, NAME),
            tuple((float(at), v / scale) for at, v in sorted(mine.items())),
            kind.get(method, "rest"),
        )
        for method, mine in values.items()
    ]
    texts = {float(length): f"{length:,}" for length in lengths}
    tells = f"{title} of {len(series)} methods at {len(lengths)} lengths."
    plot = lines(title, tells, series, ("tokens of context", unit), x_texts=texts, ends=(least, None), zero=True)
    if plot is None:
        return None
    body = [
        (Code(method), *(told(mine[length]) if length in mine else UNKNOWN for length in lengths))
        for method, mine in values.items()
        if mine
    ]
    head = ("method", *(f"{length:,} tokens" for length in lengths))
    return Chart(name, plot, Table(head, "<" + ">" * len(lengths), body))
