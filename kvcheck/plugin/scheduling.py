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
            def _split_scope(self, nodeid: str) -> str:
                return scope(nodeid)

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
