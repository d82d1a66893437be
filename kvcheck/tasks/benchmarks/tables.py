"""The list of the data sets, for the documentation."""

from __future__ import annotations

from collections.abc import Iterable

from kvcheck.tasks.benchmarks.base import DataSet


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
