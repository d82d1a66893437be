"""How items are shared out under pytest-xdist: the cases of one task and length stay on one worker.

They share their prefills there. Used for `-n` without `--dist`; any `--dist` of the user's own stands.
"""

from __future__ import annotations

from typing import Any

import pytest

from kvcheck.record import MODES


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


def case_name(nodeid: str) -> str:
    """What a run calls a case that left nothing but its node id, "" for any other test.

    >>> case_name("suites/test_code.py::test_code[kv-multi_turn-512-snapkv:budget=0.5]")
    'kv multi_turn 512|snapkv:budget=0.5'
    """
    parts = nodeid.partition("[")[2].removesuffix("]").split("-", 3)
    if len(parts) == 4 and parts[1] in MODES and parts[2].isdigit():
        return f"{' '.join(parts[:3])}|{parts[3]}"
    latency = nodeid.partition("[latency-")[2].removesuffix("]").partition("-")
    return f"latency {latency[0]}|{latency[2]}" if latency[0].isdigit() and latency[2] else ""


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
