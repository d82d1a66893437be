"""Semantic retrieval: answer from one or two documents, in English and Chinese; choose an option; find a function.

See test_string_retrieval.py for the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvcheck.plugin.case import KvCase


@pytest.mark.kv_capability("semantic_retrieval")
def test_semantic_retrieval(kv_case: KvCase) -> None:
    """The method still finds meaning."""
    kv_case.gate()
