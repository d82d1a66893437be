"""Where marks stand in a plot: data in, coordinates of an SVG out. No colours and no markup here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

FONT = 11
"""Height of a letter in a plot; a letter is about 0.56 of that wide."""
LETTER = 0.56 * FONT
COLOURS = 6
"""Lines that have a colour and a name of their own; others are grey, and named when pointed at."""


@dataclass(frozen=True)
class Tick:
    """A place on an axis with its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Label:
    """A text in the plot. end: it ends there (anchor)."""

    x: float
    y: float
    text: str
    end: bool = False


@dataclass(frozen=True)
class Mark:
    """A point. tells: what is said when it is pointed at. kind: a class of the style sheet. bar: ends of its interval
    (y). label: its name beside it, None where there is no room."""

    x: float
    y: float
    tells: str
    kind: str = ""
    bar: tuple[float, float] | None = None
    label: Label | None = None


@dataclass(frozen=True)
class Trace:
    """A line through points. kind: as of a mark."""

    name: str
    path: str
    kind: str
    marks: tuple[Mark, ...] = ()
    label: Label | None = None


@dataclass(frozen=True)
class Plot:
    """Everything of one SVG. tells: what it shows, for who does not see it."""

    title: str
    tells: str
    x_title: str
    y_title: str
    width: int
    height: int
    frame: tuple[float, float, float, float]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    traces: tuple[Trace, ...] = ()
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Point:
    """A value to be drawn, in the units of the data. low, high: its interval."""

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    kind: str = ""


@dataclass(frozen=True)
class Scale:
    """From data to coordinates, linear."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        part = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + part * (self.stop - self.start), 1)

    def ticks(self, count: int = 5) -> tuple[Tick, ...]:
        step = nice((self.high - self.low) / count)
        digits = max(0, -math.floor(math.log10(step)))
        first = math.ceil(self.low / step - 1e-9)
        every = (first + at for at in range(math.floor((self.high - self.low) / step + 1e-9) + 1))
        values = [one * step for one in every if one * step <= self.high + step * 1e-9]
        return tuple(Tick(self(value), f"{value + 0.0:.{digits}f}") for value in values)


def nice(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten.

    >>> nice(0.17), nice(3.0)
    (0.2, 5.0)
    """
    power = 10.0 ** math.floor(math.log10(step))
    return next(one * power for one in (1, 2, 5, 10) if one * power >= step * (1 - 1e-9))


def around(values: Iterable[float], least: float | None = None, most: float | None = None) -> tuple[float, float]:
    """Ends of an axis that holds the values, and never is a point."""
    found = [value for value in values if math.isfinite(value)]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room
    low = low if least is None else max(low, least)
    high = high if most is None else min(high, most)
    return (low, high) if high > low else (low, low + 1.0)


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front, least x first: no other point has less x and no less y."""
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.x, -one.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found


def scatter(title: str, tells: str, points: Sequence[Point], x_title: str, y_title: str) -> Plot:
    """Points with intervals, named where there is room, and the front as steps: what is best at so little x."""
    width, height, frame = 720, 400, (52.0, 14.0, 700.0, 352.0)
    x = Scale(0.0, max(1.02, *(one.x * 1.04 for one in points)), frame[0], frame[2])
    ends = [end for one in points for end in (one.y, one.low, one.high) if end is not None]
    y = Scale(*around(ends, 0.0, 1.02), frame[3], frame[1])
    best = front([one for one in points if one.kind != "host"])
    placed = [(one, x(one.x), y(one.y)) for one in points]
    taken = [(left - 4, top - 4, left + 4, top + 4) for _, left, top in placed]
    marks = []
    for one, left, top in sorted(placed, key=lambda each: (each[0] not in best, each[1])):
        label = _beside(one.name, left, top, frame, taken)
        bar = None if one.low is None or one.high is None else (y(one.low), y(one.high))
        kind = "front" if one in best else one.kind
        marks.append(Mark(left, top, _told(one), kind, bar, label))
    steps = [f"M{x(best[0].x)} {y(best[0].y)}"] if best else []
    steps += [f"H{x(one.x)}V{y(one.y)}" for one in best[1:]]
    traces = (Trace("Pareto front", "".join([*steps, f"H{frame[2]}"]), "pareto"),) if best else ()
    return Plot(title, tells, x_title, y_title, width, height, frame, x.ticks(10), y.ticks(6), traces, tuple(marks))


def _told(one: Point) -> str:
    sure = "" if one.low is None or one.high is None else f" [{one.low:.3f}, {one.high:.3f}]"
    return f"{one.name}: {one.y:.3f}{sure} at {one.x:.3f}"


def _beside(
    name: str,
    x: float,
    y: float,
    frame: tuple[float, float, float, float],
    taken: list[tuple[float, float, float, float]],
) -> Label | None:
    """A label near a point that covers no other one and stays inside; None where there is no such place."""
    wide = LETTER * len(name)
    for dx, dy in ((7, 4), (-7, 4), (7, -6), (-7, -6), (7, 14), (-7, 14), (7, 24), (-7, 24), (7, -16), (-7, -16)):
        left = x + dx if dx > 0 else x + dx - wide
        box = (left, y + dy - FONT + 2, left + wide, y + dy + 2)
        free = all(box[2] < b[0] or box[0] > b[2] or box[3] < b[1] or box[1] > b[3] for b in taken)
        if free and box[0] >= frame[0] and box[2] <= frame[2] + 18 and box[1] >= 0 and box[3] <= frame[3]:
            taken.append(box)
            return Label(round(x + dx, 1), round(y + dy, 1), name, dx < 0)
    return None


@dataclass(frozen=True)
class Series:
    """A line to be drawn: its values by x. kind: "ref" for what the others are held against (fp16), s0 to s5 for a line
    with a colour and a name, "rest"."""

    name: str
    values: tuple[tuple[float, float], ...]
    kind: str = "rest"


def lines(
    title: str,
    tells: str,
    series: Sequence[Series],
    titles: tuple[str, str],
    *,
    x_texts: dict[float, str],
    ends: tuple[float | None, float | None] = (None, None),
    zero: bool = False,
) -> Plot | None:
    """Lines over places with a text each, evenly apart. titles, of both axes; ends: of the upright one, where they are
    given. zero: it reaches 0."""
    series = [one for one in series if one.values]
    if not series:
        return None
    width, height, frame = 460, 280, (58.0, 14.0, 334.0, 232.0)
    places = {value: at for at, value in enumerate(sorted(x_texts))}
    x = Scale(-0.2, max(len(places) - 0.8, 0.2), frame[0], frame[2])
    drawn = [value for one in series for _, value in one.values] + [0.0] * zero
    y = Scale(*around(drawn, *ends), frame[3], frame[1])
    traces = []
    for one in sorted(series, key=lambda each: each.kind != "rest"):
        spots = [(x(places[at]), y(value), at, value) for at, value in one.values]
        path = "M" + "L".join(f"{left} {top}" for left, top, _, _ in spots)
        if one.kind == "rest":
            traces.append(Trace(one.name, path, one.kind))
            continue
        marks = tuple(
            Mark(left, top, f"{one.name}, {x_texts[at]}: {value:.4g}", one.kind) for left, top, at, value in spots
        )
        traces.append(Trace(one.name, path, one.kind, marks, Label(frame[2] + 6, spots[-1][1] + 4, one.name)))
    ticks = tuple(Tick(x(at), x_texts[value]) for value, at in places.items())
    apart = tuple(_apart(traces, frame))
    return Plot(title, tells, *titles, width, height, frame, ticks, y.ticks(5), apart)


def _apart(traces: Sequence[Trace], frame: tuple[float, float, float, float]) -> Iterator[Trace]:
    """The traces with their labels moved apart, in their order from top to bottom."""
    spots = sorted((one.label.y, at) for at, one in enumerate(traces) if one.label is not None)
    room, least, most = FONT + 2.0, frame[1] + 4, frame[3] + 8
    placed: dict[int, float] = {}
    for top, at in spots:
        placed[at] = least = max(top, least)
        least += room
    for _, at in reversed(spots):  # and from the bottom up, where they left the plot
        placed[at] = min(placed[at], most)
        most = placed[at] - room
    for at, one in enumerate(traces):
        label = one.label
        yield replace(one, label=replace(label, y=round(placed[at], 1))) if label is not None else one
