"""Packages that some tests need. Where NEED names one, its tests fail without it: in CI nothing is green by a skip."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

import pytest

NEED = "KVCHECK_TESTS_NEED"
"""Importable names, with commas between them, from .ci/run."""


def needed(module: str, pip: str) -> ModuleType:
    """The module. Skips where it is not installed, and fails where it has to be."""
    if module in os.environ.get(NEED, "").split(","):
        return import_module(module)
    found: ModuleType = pytest.importorskip(module, reason=f"{module} is not installed: {pip}")
    return found
