"""The embedded model, and prompts of it."""

from __future__ import annotations

import pytest
import torch
from tiny import one_thread  # noqa: F401  (a fixture)

from kvcheck.models import LoadedModel, load


@pytest.fixture(scope="session")
def mini() -> LoadedModel:
    """The embedded model on the CPU."""
    return load("mini", torch.device("cpu"), torch.float32)


@pytest.fixture
def ids() -> torch.Tensor:
    """Two prompts of 160 tokens."""
    return torch.randint(20, 1000, (2, 160), generator=torch.Generator().manual_seed(0))
