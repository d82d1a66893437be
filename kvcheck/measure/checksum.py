"""Sums of the bits of tensors, to notice that one was written to: inference tensors count no versions."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from kvcheck.measure.memory import parts_of


def checksums(tensors: Iterable[torch.Tensor]) -> list[int]:
    """For each tensor the sum of its storage, read as 64-bit integers. A GPU is waited for once.

    Writing other numbers changes it, but for chance; moving the same numbers around does not.
    """
    sums = [[_sum(part) for part in parts_of(tensor)] for tensor in tensors]
    flat = [each for group in sums for each in group]
    if not flat:
        return [0 for _ in sums]
    found = iter(torch.stack([each.to(flat[0].device) for each in flat]).tolist())
    return [sum(next(found) for _ in group) for group in sums]


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of one plain tensor's storage, int64."""
    size = tensor.untyped_storage().nbytes()
    whole = tensor.detach().as_strided((size // tensor.element_size(),), (1,), 0)
    return whole.view(torch.int64 if size % 8 == 0 else torch.uint8).sum(dtype=torch.int64)
