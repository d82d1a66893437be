"""The tasks: seeded, versioned sources of samples with a metric. No torch here."""

from kvcheck.registry import Registry, exports, picker
from kvcheck.tasks.base import Task

HELPERS = frozenset({"base", "filling", "lexicon", "metrics", "profiles"})


def _name(task: Task) -> str:
    return task.info.name


TASKS: Registry[Task] = Registry(
    "task",
    "kvcheck.tasks",
    "kvcheck.tasks",
    listing=lambda: exports("kvcheck.tasks", "TASKS", _name, HELPERS),
    pick=picker(_name),
)
