"""Peak device memory of some work, on top of what was allocated before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Peak:
    """The most that the counted blocks took at any time; what happens between them is left out.

    Only CUDA can tell: its allocator counts. Tensors that one block leaves behind are there in the next.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._tells = device.type == "cuda"
        self._most = 0
        self._before = self._allocated()

    @property
    def bytes(self) -> int | None:
        """Bytes; None where the device cannot tell."""
        return self._most if self._tells else None

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count this block."""
        if not self._tells:
            yield
            return
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        yield
        torch.cuda.synchronize(self.device)
        self._most = max(self._most, int(torch.cuda.max_memory_allocated(self.device)) - self._before)

    def _allocated(self) -> int:
        """Bytes of the tensors that are on the device."""
        return int(torch.cuda.memory_allocated(self.device)) if self._tells else 0
