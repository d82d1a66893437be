"""How items are shared out under pytest-xdist: the cases of one task and length stay on one worker.

They share their prefills there. Used for `-n` without `--dist`; any `--dist` of the user's own stands.
"""

from __future__ import annotations

from typing import Any

import pytest


class Scheduling:
    """Registered on the controller, where pytest-xdist is at work."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """A scheduler that groups by task and length, in place of plain `--dist load`."""
        if config.getoption("dist") != "load":
            return None
        from xdist.scheduler import LoadScopeScheduling

        class LoadCases(LoadScopeScheduling):
            """Groups by task and length. When a worker dies, upstream's scheduler tries the item that killed it again,
            in the next worker, and leaves a worker that comes late with one item, for which it waits for ever."""

            def _split_scope(self, nodeid: str) -> str:
                return scope(nodeid)

            def remove_node(self, node: Any) -> str | None:
                units = self.assigned_work.get(node, {}).values()
                left = ((unit, nodeid) for unit in units for nodeid, done in unit.items() if not done)
                found = next(left, None)
                if found is None:
                    return super().remove_node(node)
                unit, crashed = found
                unit[crashed] = True
                for name, each in self.assigned_work.pop(node).items():
                    if not all(each.values()):
                        self.workqueue[name] = each
                for other in self.nodes:
                    self._reschedule(other)
                return crashed

            def add_node_collection(self, node: Any, collection: Any) -> None:
                super().add_node_collection(node, collection)
                if node not in self.registered_collections:
                    node.shutdown()  # it has collected other tests, which upstream logs

            def _reschedule(self, node: Any) -> None:
                """A worker runs an item when it knows the next one, or that there is none: it always knows."""
                if node not in self.registered_collections:
                    return
                while not node.shutting_down:
                    if not self.workqueue:
                        node.shutdown()
                    elif self._pending_of(self.assigned_work[node]) >= 2:
                        return
                    else:
                        self._assign_work_unit(node)

        return LoadCases(config, log)


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
