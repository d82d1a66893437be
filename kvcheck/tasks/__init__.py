"""The tasks: seeded, versioned sources of samples with a metric. No torch here.

Read `base.py` first (what a task is), then `filling.py` (how generated ones are declared) and `string_retrieval.py`.
Public benchmarks are in `benchmarks/` and `ruler/`, how answers are graded is in `metrics/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.core.front import option
from kvcheck.core.registry import Registry, exports, load_attribute, picker
from kvcheck.tasks.base import Task

if TYPE_CHECKING:
    from kvcheck.tasks.benchmarks import Benchmarks

HELPERS = frozenset(
    ("base", "benchmarks", "completion", "filling", "image_needle", "images", "lexicon", "metrics", "profiles", "ruler")
)
FAMILIES = {
    "completion": "kvcheck.tasks.completion",
    "ruler": "kvcheck.tasks.ruler",
    "passkey": "kvcheck.tasks.benchmarks.passkey",
    "image_needle": "kvcheck.tasks.image_needle",
}
"""Modules of generated tasks named family/task: part of no profile, known when asked for by name, imported then."""
PUBLIC = (
    *("aime24", "aime25", "gsm8k", "infinitebench", "longbench", "longbench_v2", "longgenbench", "longmemeval"),
    *("math500", "niah", "ruler_16384", "ruler_4096", "ruler_8192", "scbench"),
)
"""Families whose samples are rows of public data sets, which need a place to be read from."""


def _name(task: Task) -> str:
    return task.info.name


def _family(name: str) -> Mapping[str, str]:
    """{name: "module:ATTRIBUTE"} of the family that a name belongs to, {} for a name without one."""
    family, slash, _ = name.partition("/")
    if not slash or family not in FAMILIES:
        return {}
    module = FAMILIES[family]
    return {_name(task): f"{module}:TASKS" for task in load_attribute(module, "TASKS")}


TASKS: Registry[Task] = Registry(
    "task",
    "kvcheck.tasks",
    "kvcheck.tasks",
    listing=lambda: exports("kvcheck.tasks", "TASKS", _name, HELPERS),
    pick=picker(_name),
    beside=_family,
)


def find(name: str, data: str | None = None, compat: bool = False, alone: bool = False, text: str = "") -> Task:
    """The task of that name. Nothing is read before its first sample, but for a text of the user's.

    data: where public data sets are read, "hub" or a folder. compat: with known bugs of the sets. alone: contexts will
    be encoded without a question (multi_request). text: the user's file, for tasks over a natural text.
    Raises SpecError for an unknown name, and for a missing place.
    """
    family = name.partition("/")[0]
    if text and family == "completion":
        from kvcheck.tasks.completion import of_file

        if name in of_file(text):
            return of_file(text)[name]
    if "/" not in name or family not in PUBLIC:
        return TASKS.get(name)
    if name not in members(family):
        raise SpecError(f"unknown task {name!r}", did_you_mean(name, members(family)))
    if data is None:
        raise SpecError(
            f"{name} is read from a public data set, and no place is given",
            f"{option('tasks', name)} {option('data')}=hub, or {option('data')}=FOLDER with its rows "
            "(docs/reference/benchmarks.md)",
        )
    return _benchmarks(data, compat, alone).get(name)


def members(family: str) -> list[str]:
    """The names of all tasks of a family, in its own order; [] where there is no such family."""
    if family in PUBLIC:
        from kvcheck.tasks.benchmarks import DATA_SETS

        return [name for name in DATA_SETS if name.startswith(f"{family}/")]
    return list(_family(f"{family}/")) if family in FAMILIES else []


@cache
def _benchmarks(data: str, compat: bool, alone: bool) -> Benchmarks:
    """The tasks over a place."""
    from kvcheck.tasks.benchmarks import benchmark_tasks

    return benchmark_tasks(data, compat, alone)
