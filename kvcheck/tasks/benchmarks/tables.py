"""Means per turn and subtask, as SCBench reports them, and the list of the data sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from kvcheck.tasks.benchmarks.base import DataSet


def turn_table(
    scores: Iterable[tuple[int, str, float]], subtasks: Iterable[str] = (), compat: bool = False
) -> dict[tuple[int, str], float]:
    """{(turn, subtask): mean score} of (turn, subtask, score) triples; subtask is "" where a task has none.

    compat: slip 7, a subtask without any turn at a turn index counts 0 there (all `subtasks` at every index); without
    it such a cell is left out, so that it does not lower a mean.
    """
    cells: dict[tuple[int, str], list[float]] = defaultdict(list)
    for turn, subtask, score in scores:
        cells[turn, subtask].append(score)
    if compat:
        for turn in {turn for turn, _ in cells}:
            for subtask in subtasks:
                cells.setdefault((turn, subtask), [0.0])
    return {key: sum(found) / len(found) for key, found in sorted(cells.items())}


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
