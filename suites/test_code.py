"""Code: complete a function that depends on definitions far above.

See test_string_retrieval.py for the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvcheck.plugin.case import KvCase


@pytest.mark.kv_capability("code")
def test_code(kv_case: KvCase) -> None:
    """The method still completes code."""
    kv_case.gate()
