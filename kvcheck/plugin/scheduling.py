"""How items are shared out under pytest-xdist: the cases of one task and length stay on one worker.

They share their prefills there. Used for `-n` without `--dist`; any `--dist` of the user's own stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling
    from xdist.workermanage import WorkerController


class Scheduling:
    """Registered on the controller, where pytest-xdist is at work."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
        """A scheduler that groups by task and length, in place of plain `--dist load`; those by scope, mended."""
        from xdist import scheduler

        known = {
            "load": scheduler.LoadScopeScheduling,
            "loadscope": scheduler.LoadScopeScheduling,
            "loadfile": scheduler.LoadFileScheduling,
            "loadgroup": scheduler.LoadGroupScheduling,
        }
        dist = config.getoption("dist")
        if dist not in known:
            return None
        found = _steady(known[dist])(config, log)
        if dist == "load":
            found._split_scope = scope
        return found


def _steady(upstream: type[LoadScopeScheduling]) -> type[LoadScopeScheduling]:
    """A scheduler by scope that goes on when a worker dies.

    Upstream tries the item that killed the worker again, in the next one, and leaves a worker that comes late with one
    item, for which it waits for ever: a worker runs an item when it knows the next one, or that there is none.
    """

    class Steady(upstream):  # type: ignore[misc]
        def remove_node(self, node: WorkerController) -> str | None:
            units = self.assigned_work.get(node, {}).values()
            left = ((unit, nodeid) for unit in units for nodeid, done in unit.items() if not done)
            found = next(left, None)
            if found is None:
                return upstream.remove_node(self, node)
            unit, crashed = found
            unit[crashed] = True
            for name, each in self.assigned_work.pop(node).items():
                if not all(each.values()):
                    self.workqueue[name] = each
            for other in self.nodes:
                self._reschedule(other)
            return crashed

        def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
            upstream.add_node_collection(self, node, collection)
            if node not in self.registered_collections:
                node.shutdown()  # it has collected other tests, which upstream logs

        def _reschedule(self, node: WorkerController) -> None:
            if node not in self.registered_collections:
                return
            while not node.shutting_down:
                if not self.workqueue:
                    node.shutdown()
                elif self._pending_of(self.assigned_work[node]) >= 2:
                    return
                else:
                    self._assign_work_unit(node)

    return Steady


def scope(nodeid: str) -> str:
    """What must stay together: file, task and length of a case, the node id itself of any other test.

    >>> scope("suites/test_code.py::test_code[kv-multi_turn-512-snapkv:budget=0.5]")
    'suites/test_code.py::kv-512'
    """
    head, bracket, tail = nodeid.partition("[")
    parts = tail.split("-", 3)
    if not bracket or len(parts) < 4 or not parts[2].isdigit():
        return nodeid
    return f"{head.rpartition('::')[0]}::{parts[0]}-{parts[2]}"
