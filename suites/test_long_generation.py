"""Long generation: an answer of several hundred tokens that depends on the whole context.

See test_string_retrieval.py for the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvcheck.plugin.case import KvCase


@pytest.mark.kv_capability("long_generation")
def test_long_generation(kv_case: KvCase) -> None:
    """The method still holds on while it writes."""
    kv_case.gate()
