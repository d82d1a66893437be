"""Global information: what only the whole context tells (many-shot labels, the largest number, a summary).

See test_string_retrieval.py for the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvcheck.plugin.case import KvCase


@pytest.mark.kv_capability("global_information")
def test_global_information(kv_case: KvCase) -> None:
    """The method still sees the whole context."""
    kv_case.gate()
