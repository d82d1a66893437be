"""A buffer that grows ahead, so that a decode step writes one slot instead of copying the cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class GrowableBuffer:
    """A tensor (B, G, capacity, ...) of which `length` slots from `start` on are used. Appends in place where it can.

    What a tensor brings along is adopted as it is (no copy, no spare slots). An adopted buffer is never written to:
    it is full, so the first append moves the content to a new buffer. Only its unused slots are discounted
    when memory is measured.
    """

    __slots__ = ("length", "start", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.contiguous()
        self.length = tensor.shape[2]
        self.start = 0

    @property
    def used(self) -> torch.Tensor:
        """The used slots (B, G, length, ...), a view."""
        return self.tensor[:, :, self.start : self.start + self.length]

    @property
    def unused_bytes(self) -> int:
        """Bytes of the slots that nothing has been written to: no more of them than `append` allocates ahead.

        One that is made shorter without a new buffer still holds what it held, and that counts.
        """
        capacity = self.tensor.shape[2]
        unused = min(capacity - self.length, _spare(self.length))
        return self.tensor.nbytes // capacity * unused if capacity else 0

    def append(self, block: torch.Tensor) -> None:
        """Write a block (B, G, q, ...) behind the used slots."""
        need = self.length + block.shape[2]
        if self.start + need > self.tensor.shape[2]:
            grown = _like(self.tensor, need + _spare(need))
            grown[:, :, : self.length] = self.used
            self.tensor, self.start = grown, 0
        self.tensor[:, :, self.start + self.length : self.start + need] = block
        self.length = need

    def keep(self, index: torch.Tensor, spare: int = 0) -> None:
        """Keep the slots `index` (B, G, m), int64, per kv head, in a new buffer of exactly m (+ spare) slots."""
        batch, heads, capacity = self.tensor.shape[:3]
        step = max(1, capacity)
        lanes = torch.arange(self.start, self.start + batch * heads * step, step, device=index.device)
        lanes = lanes.view(batch, heads, 1)
        self.length, self.start = index.shape[2], 0
        if spare:
            index = torch.nn.functional.pad(index, (0, spare))  # spare slots hold any slot: never read
        flat = self.tensor.reshape(batch * heads * capacity, *self.tensor.shape[3:])
        self.tensor = flat.index_select(0, (index + lanes).flatten()).view(*index.shape, *self.tensor.shape[3:])

    def drop(self, oldest: int) -> None:
        """Drop the oldest slots; the rest moves to a new buffer of exactly its size."""
        self.tensor = self.used[:, :, oldest:].clone(memory_format=torch.contiguous_format)
        self.length, self.start = self.length - oldest, 0

    def slide(self, first: int, count: int) -> None:
        """Drop `count` slots behind the first `first`, which move up to the rest; more is to be appended.

        In place, so that a step does not copy what it keeps; in a new buffer where this one is full, as an adopted one
        is, or larger than `append` would make it.
        """
        left = self.length - count
        if self.start + self.length < self.tensor.shape[2] <= left + _spare(left):
            self.used[:, :, count : count + first] = self.used[:, :, :first].clone()
            self.start += count
        else:
            moved = _like(self.tensor, left + _spare(left))
            moved[:, :, :first], moved[:, :, first:left] = self.used[:, :, :first], self.used[:, :, first + count :]
            self.tensor, self.start = moved, 0
        self.length = left

    def own(self) -> None:
        """Copy the content when the buffer is a view into something larger, which it would keep alive."""
        if self.tensor.untyped_storage().nbytes() != self.tensor.nbytes:
            self.tensor = self.tensor.clone(memory_format=torch.contiguous_format)

    def select(self, rows: Sequence[int] | torch.Tensor) -> GrowableBuffer:
        """A new buffer with copies of these rows of the batch."""
        at = torch.as_tensor(rows, dtype=torch.long, device=self.tensor.device)
        return GrowableBuffer(self.used.index_select(0, at))


def appended(buffer: GrowableBuffer | None, block: torch.Tensor) -> GrowableBuffer:
    """The buffer with a block (B, G, q, ...) behind it; None: one that begins with the block, which is adopted."""
    if buffer is None:
        return GrowableBuffer(block)
    buffer.append(block)
    return buffer


def _like(tensor: torch.Tensor, capacity: int) -> torch.Tensor:
    """An uninitialised tensor of another capacity."""
    return tensor.new_empty(*tensor.shape[:2], capacity, *tensor.shape[3:])


def _spare(length: int) -> int:
    """Slots to allocate ahead: an eighth, so that growing costs O(1) copies per token, and at least 32."""
    return max(32, length // 8)
