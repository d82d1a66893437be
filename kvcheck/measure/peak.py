"""Peak device memory of some work, on top of what was allocated before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class Peak:
    """The most that the counted blocks took at any time; what happens between them is left out.

    Only CUDA can tell: its allocator counts. Tensors that one block leaves behind are there in the next.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._devices = [device for device in devices if device.type == "cuda"]
        self._most = [0 for _ in self._devices]
        self._before = [int(torch.cuda.memory_allocated(device)) for device in self._devices]

    @property
    def tells(self) -> bool:
        """Whether any of the devices can tell."""
        return bool(self._devices)

    @property
    def bytes(self) -> int | None:
        """Bytes, of all devices together; None where none can tell."""
        return sum(self._most) if self.tells else None

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count this block."""
        for device in self._devices:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        yield
        for place, device in enumerate(self._devices):
            torch.cuda.synchronize(device)
            most = int(torch.cuda.max_memory_allocated(device)) - self._before[place]
            self._most[place] = max(self._most[place], most)
