"""The embedded model, and prompts of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kvcheck.models import LoadedModel, load


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small matrices are fastest on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mini() -> LoadedModel:
    """The embedded model on the CPU."""
    return load("mini", torch.device("cpu"), torch.float32)


@pytest.fixture
def ids() -> torch.Tensor:
    """Two prompts of 160 tokens."""
    return torch.randint(20, 1000, (2, 160), generator=torch.Generator().manual_seed(0))
