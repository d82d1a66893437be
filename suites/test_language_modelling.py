"""Language modelling: go on with natural text, and how likely it is. Nothing is asked: --kv-tasks completion.

See test_string_retrieval.py for the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvcheck.plugin.case import KvCase


@pytest.mark.kv_capability("language_modelling")
def test_language_modelling(kv_case: KvCase) -> None:
    """The method still goes on with a text as the full cache does."""
    kv_case.gate()
