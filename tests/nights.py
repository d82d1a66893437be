"""What of a table is tried every day, and what nightly: CONTRIBUTING.md says when what runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def daily(values: Iterable[Any], *soon: Any) -> list[Any]:
    """All values as parameters; those that are not named here are left to the nightly run."""
    every = list(values)
    assert soon, "one of each kind runs every day"
    assert all(value in every for value in soon), set(soon) - set(every)
    return [value if value in soon else pytest.param(value, marks=pytest.mark.nightly) for value in every]
