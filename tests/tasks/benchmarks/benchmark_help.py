"""What tests of the benchmarks ask of data sets and samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kvcheck.tasks.base import Sample
from kvcheck.tasks.benchmarks import known
from kvcheck.tasks.benchmarks.base import DataSet, Row, Source
from kvcheck.tasks.benchmarks.rows import read


def rows(source: Source, name: str) -> Iterator[Row]:
    """The rows of a data set, checked, in file order."""
    return (row for _, row in read(known(name), source))


def prompt(sample: Sample, turn: int = 0) -> str:
    """The text that asks a turn right behind the context, without a chat template."""
    asked = sample.turns[turn]
    return sample.context + asked.question + asked.lead


def listing(data_sets: Iterable[DataSet]) -> list[str]:
    """The data sets as lines of a Markdown table, as `docs/reference/benchmarks.md` shows them."""
    head = "| data set | rows | metric | with `compat` | max_new_tokens | chat | modes | licence |"
    return [head, "|---|---|---|---|---|---|---|---|", *map(_line, data_sets)]


def _line(one: DataSet) -> str:
    new = one.max_new_tokens
    limits = str(new) if isinstance(new, int) else ", ".join(f"{kind} {size}" for kind, size in new.items())
    compat = one.metric_compat.replace("+", ", ") or "same"
    cells = (
        f"`{one.name}`",
        str(one.count),
        one.metric.replace("+", ", "),
        compat,
        limits,
        "yes" if one.chat else "no",
    )
    return f"| {' | '.join((*cells, ', '.join(one.modes), one.licence))} |"
