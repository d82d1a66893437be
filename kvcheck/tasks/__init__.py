"""The tasks: seeded, versioned sources of samples with a metric. No torch here."""

from collections.abc import Mapping

from kvcheck.registry import Registry, exports, load_attribute, picker
from kvcheck.tasks.base import Task

HELPERS = frozenset({"base", "filling", "lexicon", "metrics", "profiles"})
FAMILIES = frozenset({"ruler"})
"""Packages of tasks named family/task: part of no profile, known when asked for by name, imported only then."""


def _name(task: Task) -> str:
    return task.info.name


def _family(name: str) -> Mapping[str, str]:
    """{name: "module:ATTRIBUTE"} of the family that a name belongs to, {} for a name without one."""
    family, slash, _ = name.partition("/")
    if not slash or family not in FAMILIES:
        return {}
    module = f"kvcheck.tasks.{family}"
    return {_name(task): f"{module}:TASKS" for task in load_attribute(module, "TASKS")}


def members(family: str) -> list[str]:
    """The names of all tasks of a family, in its own order; [] where there is no such family."""
    return [] if "/" in family else list(_family(family + "/"))


TASKS: Registry[Task] = Registry(
    "task",
    "kvcheck.tasks",
    "kvcheck.tasks",
    listing=lambda: exports("kvcheck.tasks", "TASKS", _name, HELPERS | FAMILIES),
    pick=picker(_name),
    beside=_family,
)
