"""Does a verdict on one model hold on another? Methods that both have records of, ranked by accuracy and by KL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from kvcheck.core.errors import MissingBaseline
from kvcheck.core.front import command
from kvcheck.report.recorded import MODELS, Recorded, recorded
from kvcheck.report.table import Code, Table

HEAD = """\
<!-- written by `kvcheck transfer --md`; do not edit -->
# Does a verdict on the embedded model hold on a pretrained one?

Every method that both models have a shipped record of, by what it loses there, and how alike the two order them. Points
are below fp16's accuracy, each capability alike; KL is from fp16's logits on the reference answers, in nats per token:
the mean over all cases, and the median over tasks, since one task with large KL can decide a mean.
Methods that give fp16's answers by construction (offloading, saving and loading) are left out: they would only make the
orders look more alike.
"""
READ = """\
Spearman's rank correlation is 1 for the same order and 0 for none. "Same tasks" are those that both models have records
of ({tasks}). **The order** carries over as far as this table says, and no farther: of a kind with few methods, one that
changes its place decides the number. {moved}
**What does not carry over** is the size of a loss: the last column has mean KL on `{there}` as a multiple of that on
`{here}` (of 0.0005 nats where it is less, which records do not resolve): for the method that it grows least for, the
median one, and the one that it grows most for. So take no limit in points or nats from one model to another.
"""
SHOWS = """\
Which faults of a cache each model shows at all, and which it is blind to, is measured by changing one thing at a time
([phenomena](phenomena.md)) and by bugs of public projects beside their correct counterparts ([told](told.md));
[models](models.md#what-each-model-can-show) has it in words.
"""
WIDE = 120
"""Columns of the tables on a terminal."""
FEWEST = 4
"""Methods of which a rank correlation is shown."""
TINY = 0.0005
"""Nats of KL that records do not resolve, where a ratio is taken."""
KINDS = {
    "all": "all methods",
    "rounds": "those that round or prune channels",
    "leaves out": "those that leave tokens out",
}
"""What methods do, and in words. A method that does both counts in the first only."""


@dataclass(frozen=True)
class Method:
    """One method on two models. kind: of KINDS, "both" for a combined one of two kinds.

    lost: points of accuracy below fp16; kl: nats from fp16, mean over the cases; by model. middle: the median over the
    tasks, which one task cannot decide; same: mean over the tasks that both models have, None without such.
    """

    spec: str
    kind: str
    lost: tuple[float, float]
    kl: tuple[float, float]
    middle: tuple[float, float]
    same: tuple[float, float] | None


def methods(models: Sequence[str]) -> list[Method]:
    """What both models have records of, without fp16 and what is fp16 by construction.

    Raises MissingBaseline where one of them has none of fp16.
    """
    found = [recorded(model) for model in models]
    for model, known in zip(models, found, strict=True):
        if "fp16" not in known:
            raise MissingBaseline(
                f"no record of fp16 on {model}", f"record it: {command('fp16', model=model, record='new')}"
            )
    here, there = found
    fp16 = here["fp16"], there["fp16"]
    both = [(here[spec], there[spec]) for spec in here if spec in there and not _exact(spec)]
    return [_method(fp16, pair) for pair in both if all(one.kl is not None for one in pair)]


def shared(models: Sequence[str]) -> list[str]:
    """The tasks that the fp16 records of both models have KL of."""
    here, there = (recorded(model)["fp16"].kl_by_task for model in models)
    return sorted(here.keys() & there.keys())


def _method(fp16: tuple[Recorded, Recorded], pair: tuple[Recorded, Recorded]) -> Method:
    here, there = pair
    tasks = here.kl_by_task.keys() & there.kl_by_task.keys()
    lost = [100 * (_mean(full) - _mean(one)) for full, one in zip(fp16, pair, strict=True)]
    middle = [median(one.kl_by_task.values()) for one in pair]
    same = [sum(one.kl_by_task[task] for task in tasks) / len(tasks) for one in pair] if tasks else None
    kl = (here.kl or 0.0, there.kl or 0.0)
    return Method(
        here.spec,
        _kind(here.spec),
        (lost[0], lost[1]),
        kl,
        (middle[0], middle[1]),
        (same[0], same[1]) if same else None,
    )


def _mean(one: Recorded) -> float:
    """Accuracy, each capability alike."""
    return sum(one.accuracy.values()) / len(one.accuracy)


def _exact(spec: str) -> bool:
    """Whether a method gives fp16's answers by construction, whatever its parameters."""
    from kvcheck.cache.method import Lossless
    from kvcheck.methods import make

    return make(spec).info.lossless == Lossless.ALWAYS


def _kind(spec: str) -> str:
    """Of KINDS, by what a method declares; of a combined one, by that of its parts."""
    from kvcheck.methods import make

    kinds = {"leaves out" if make(part).info.verbatim else "rounds" for part in spec.split("+")}
    return kinds.pop() if len(kinds) == 1 else "both"


@dataclass(frozen=True)
class Alike:
    """How alike two models order the methods of a kind, in words of KINDS; None for too few methods.

    lost, kl, middle, same: Spearman's rank correlation by points lost, and by KL as in Method. grows: KL on the second
    model as a multiple of KL on the first, by means: least, median, most.
    """

    kind: str
    count: int
    lost: float | None
    kl: float | None
    middle: float | None
    same: float | None
    grows: tuple[float, float, float] | None


def correlations(found: Sequence[Method]) -> Iterator[Alike]:
    """By kind."""
    for kind, words in KINDS.items():
        mine = [one for one in found if kind in ("all", one.kind)]
        ratios = sorted(max(one.kl[1], TINY) / max(one.kl[0], TINY) for one in mine)
        grows = (ratios[0], median(ratios), ratios[-1]) if len(mine) >= FEWEST else None
        by = {name: [pair for one in mine if (pair := getattr(one, name))] for name in ("lost", "kl", "middle", "same")}
        yield Alike(words, len(mine), **{name: _spearman(pairs) for name, pairs in by.items()}, grows=grows)


def _spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    from scipy.stats import spearmanr

    if len(pairs) < FEWEST or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def tables(models: Sequence[str], found: Sequence[Method]) -> tuple[Table, Table]:
    """What each method does to both models, by KL on the second; and how alike the ranks are."""
    one, other = models
    head = ("method", "it", f"points lost, {one}", other, f"KL, mean, {one}", other, f"KL, median task, {one}", other)
    rows = [
        (Code(each.spec), each.kind, *map(_points, each.lost), *map(_nats, (*each.kl, *each.middle)))
        for each in sorted(found, key=lambda each: each.kl[1])
    ]
    ranks = [
        (each.kind, str(each.count), *map(_rank, (each.lost, each.kl, each.middle, each.same)), *_grows(each.grows))
        for each in correlations(found)
    ]
    by = ("points lost", "KL, mean", "median task", "same tasks")
    second = ("Spearman over", "methods", *by, f"KL on {other} / {one}")
    return Table(head, "<<>>>>>>", rows), Table(second, "<>>>>>>", ranks)


def _moved(models: Sequence[str], found: Sequence[Method]) -> str:
    """Which methods change their place most, by the median task."""
    places = [{one.spec: at for at, one in enumerate(_by_middle(found, side), 1)} for side in (0, 1)]
    moves = {spec: abs(place - places[1][spec]) for spec, place in places[0].items()}
    most = [spec for spec, by in moves.items() if by and by == max(moves.values())]
    each = [f"`{spec}` ({places[0][spec]} on `{models[0]}`, {places[1][spec]} on `{models[1]}`)" for spec in most]
    said = (
        f"By the median task those that change most, of {len(found)} places with 1 for the mildest: {', '.join(each)}."
    )
    return said if each else ""


def _by_middle(found: Sequence[Method], side: int) -> list[Method]:
    return sorted(found, key=lambda one: (one.middle[side], one.spec))


def _points(value: float) -> str:
    return f"{value + 0.0:.1f}"


def _nats(value: float) -> str:
    return f"{value:.4f}"


def _rank(value: float | None) -> str:
    return "too few" if value is None else f"{value:.2f}"


def _grows(value: tuple[float, float, float] | None) -> Iterator[str]:
    yield "" if value is None else " … ".join(f"{one:.2g}" for one in value)


def text(models: Sequence[str], found: Sequence[Method]) -> Iterator[str]:
    """Lines for a terminal."""
    first, second = tables(models, found)
    yield from first.text(WIDE)
    yield ""
    yield from second.text(WIDE)


def markdown(models: Sequence[str], found: Sequence[Method]) -> Iterator[str]:
    """Lines of Markdown."""
    first, second = tables(models, found)
    yield HEAD
    for model in models:
        yield f"- `{model}`: {MODELS[model].replace('`', '')}"
    yield ""
    yield from first.markdown()
    yield from second.markdown()
    tasks = ", ".join(f"`{task}`" for task in shared(models)) or "none"
    yield READ.format(here=models[0], there=models[1], tasks=tasks, moved=_moved(models, found))
    yield SHOWS.rstrip()
