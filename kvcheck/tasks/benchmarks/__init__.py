"""The real benchmarks: rows of public data sets as tasks, with the official prompts, limits and metrics.

`benchmark_tasks("hub")` reads the Hub at pinned revisions, `benchmark_tasks(PATH)` a local folder. Listing the names
reads nothing; a task reads its template and its rows when its first sample is asked for.
"""

from __future__ import annotations

from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.tasks.benchmarks import (
    infinitebench,
    longbench,
    longbench_v2,
    longmemeval,
    maths,
    niah,
    ruler_rows,
    scbench,
)
from kvcheck.tasks.benchmarks.base import DataSet, Source
from kvcheck.tasks.benchmarks.loaded import BenchmarkTask, make_task

__all__ = ["DATA_SETS", "BenchmarkTask", "Benchmarks", "DataSet", "Source", "benchmark_tasks", "known"]

DATA_SETS: dict[str, DataSet] = {
    data_set.name: data_set
    for suite in (longbench, scbench, infinitebench, longbench_v2, niah, ruler_rows, maths, longmemeval)
    for data_set in suite.DATA_SETS
}
"""Every data set by name."""


class Benchmarks:
    """The tasks of the benchmarks by name, over one source and in one form; a task is made once."""

    def __init__(self, source: Source, compat: bool = False, scdq: bool = False) -> None:
        self.source, self.compat, self.scdq = source, compat, scdq
        self._made: dict[str, BenchmarkTask] = {}

    def get(self, name: str) -> BenchmarkTask:
        """The task of that name. Raises SpecError for an unknown name."""
        if name not in self._made:
            self._made[name] = make_task(known(name), self.source, self.compat, self.scdq)
        return self._made[name]


def known(name: str) -> DataSet:
    """The declaration of a data set. Raises SpecError for an unknown name."""
    if name not in DATA_SETS:
        suites = sorted({one.suite for one in DATA_SETS.values()})
        suite = name.partition("/")[0]
        near = [one for one in DATA_SETS if suite not in suites or one.startswith(f"{suite}/")]
        raise SpecError(f"unknown data set {name!r}", did_you_mean(name, near))
    return DATA_SETS[name]


def benchmark_tasks(source: str, compat: bool = False, scdq: bool = False) -> Benchmarks:
    """The tasks over `source`: "hub", or the path of a folder. Raises SpecError for a path that is no folder.

    compat: with the known bugs of the official scorers, to compare with published numbers. scdq: SCBench's form for
    contexts that are encoded alone (multi-request); it changes where the context is cut, and with `compat` more.

    >>> benchmark_tasks("hub").get("longbench/qasper").info.capability
    'semantic_retrieval'
    """
    return Benchmarks(Source.parse(source), compat, scdq)
