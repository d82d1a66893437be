"""Two tasks on one context: a summary with needles in it, code with key-value pairs.

See test_string_retrieval.py for the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvcheck.plugin.case import KvCase


@pytest.mark.kv_capability("multi_task")
def test_multi_task(kv_case: KvCase) -> None:
    """The method still serves two tasks at once."""
    kv_case.gate()
