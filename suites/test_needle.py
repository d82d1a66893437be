"""Needles in a haystack: depth by length, short and long keys, one and several needles.

See test_string_retrieval.py for the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvcheck.plugin.case import KvCase


@pytest.mark.kv_capability("needle")
def test_needle(kv_case: KvCase) -> None:
    """The method still finds the needle at every depth."""
    kv_case.gate()
