"""The pretended device, for every test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from pretended import Device, device, driver

from kvcheck.methods import cake


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside of the pretended device, in every thread."""
    driver(monkeypatch)
    monkeypatch.setattr(cake, "ThreadPoolExecutor", partial(ThreadPoolExecutor, initializer=_enter))
    with device(), torch.inference_mode():
        yield


def _enter() -> None:
    Device().__enter__()
