"""Does a verdict on one model hold on another? Methods that both have records of, ranked by accuracy and by KL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvcheck.core.errors import MissingBaseline
from kvcheck.core.front import command
from kvcheck.report.recorded import MODELS, Recorded, recorded
from kvcheck.report.table import Code, Table

HEAD = """\
<!-- written by `kvcheck transfer --md`; do not edit -->
# Does a verdict on the embedded model hold on a pretrained one?

Every method that both models have a shipped record of, by what it loses there, and how alike the two order them
(Spearman's rank correlation: 1 is the same order, 0 none). Points are below fp16's accuracy, each capability alike.
What each model can and cannot show is in [models](models.md#what-each-model-can-show).
"""
FEWEST = 4
"""Methods of which a rank correlation is shown."""
KINDS = {
    "all": "all methods",
    "rounds": "those that round or prune channels",
    "leaves out": "those that leave tokens out",
}


@dataclass(frozen=True)
class Method:
    """One method on two models. kind: of KINDS. lost: points of accuracy below fp16; kl: nats from fp16; by model."""

    spec: str
    kind: str
    lost: tuple[float, float]
    kl: tuple[float, float]


def methods(models: Sequence[str]) -> list[Method]:
    """What both models have records of, fp16 left out. Raises MissingBaseline where one of them has none."""
    found = [recorded(model) for model in models]
    for model, known in zip(models, found, strict=True):
        if "fp16" not in known:
            raise MissingBaseline(
                f"no record of fp16 on {model}", f"record it: {command('fp16', model=model, record='new')}"
            )
    here, there = found
    fp16 = here["fp16"], there["fp16"]
    both = [(here[spec], there[spec]) for spec in here if spec in there and spec != "fp16"]
    return [
        Method(
            pair[0].spec,
            _kind(pair[0].spec),
            tuple(100 * (_mean(full) - _mean(one)) for full, one in zip(fp16, pair, strict=True)),  # type: ignore[arg-type]
            tuple(one.kl for one in pair),  # type: ignore[arg-type]
        )
        for pair in both
        if all(one.kl is not None for one in pair)
    ]


def _mean(one: Recorded) -> float:
    """Accuracy, each capability alike."""
    return sum(one.accuracy.values()) / len(one.accuracy)


def _kind(spec: str) -> str:
    from kvcheck.methods import make

    return "leaves out" if make(spec).info.verbatim else "rounds"


def correlations(found: Sequence[Method]) -> Iterator[tuple[str, int, float | None, float | None]]:
    """(kind, methods, Spearman's rank correlation by points lost, by KL) between the models; None for too few."""
    for kind, words in KINDS.items():
        mine = [one for one in found if kind in ("all", one.kind)]
        yield words, len(mine), _spearman([one.lost for one in mine]), _spearman([one.kl for one in mine])


def _spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    from scipy.stats import spearmanr

    if len(pairs) < FEWEST or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def tables(models: Sequence[str], found: Sequence[Method]) -> tuple[Table, Table]:
    """What each method does to both models, by KL on the second; and how alike the ranks are."""
    one, other = models
    head = ("method", f"points lost, {one}", other, f"KL from fp16, {one}", other)
    rows = [
        (Code(each.spec), *(f"{value:.1f}" for value in each.lost), *(f"{value:.4f}" for value in each.kl))
        for each in sorted(found, key=lambda each: each.kl[1])
    ]
    ranks = [
        (words, str(count), *("too few" if value is None else f"{value:.2f}" for value in values))
        for words, count, *values in correlations(found)
    ]
    return Table(head, "<>>>>", rows), Table(("Spearman over", "methods", "by points lost", "by KL"), "<>>>", ranks)


def text(models: Sequence[str], found: Sequence[Method]) -> Iterator[str]:
    """Lines for a terminal."""
    first, second = tables(models, found)
    yield from first.text()
    yield ""
    yield from second.text()


def markdown(models: Sequence[str], found: Sequence[Method]) -> Iterator[str]:
    """Lines of Markdown."""
    first, second = tables(models, found)
    yield HEAD
    for model in models:
        yield f"- `{model}`: {MODELS[model].replace('`', '')}"
    yield ""
    yield from first.markdown()
    yield from second.markdown()
