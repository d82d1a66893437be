"""String retrieval: find a random string again (key-value pairs, shared prefixes, chains of variables).

This is the whole loop of kvcheck. pytest runs the test once per case and method, where a case is one task in one mode
at one length:

    pytest --kv-method=snapkv                          all suites, with SnapKV
    pytest --kv-method=snapkv:budget=0.5 -m kv         one task
    pytest --kv-method=fp16 --kv-method=snapkv -k multi_turn

Where to read on: kvcheck/tasks/string_retrieval.py (the questions), kvcheck/methods/snapkv.py (a method),
kvcheck/core/record.py (what is recorded), kvcheck/judging/budget.py (how it is judged).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvcheck.plugin.case import KvCase


@pytest.mark.kv_capability("string_retrieval")
def test_string_retrieval(kv_case: KvCase) -> None:
    """The method still finds strings."""
    # Without a baseline there is nothing to judge by: that is said before anything is measured.
    kv_case.expect_baseline()

    # Fill the context with seeded samples, prefill, compress with the method, decode the answers, grade them.
    record = kv_case.run()

    # Pair each sample with the fp16 record of the same prompt, and with what the method itself once scored.
    # Fails here, with the numbers, when accuracy drops or bytes grow beyond the budget for sure.
    kv_case.check(record)
