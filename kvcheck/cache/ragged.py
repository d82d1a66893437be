"""A cache layer whose rows and kv heads hold different numbers of slots.

What was kept lies end to end in flat tensors, row by row and head by head, so that no byte is held for padding; what
has come since lies in k and v as ever, as many tokens for every head. Attention pads on the fly and masks the padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from kvcheck.cache import kernels
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer


class Flat:
    """Segments of unequal length, one per row and kv head. tensor (S, ...); counts[row][head]: slots of a segment.

    lengths (B, G) int32: the counts where the tensor is, once they have been asked for.
    """

    def __init__(self, tensor: torch.Tensor, counts: list[list[int]]) -> None:
        self.tensor = tensor
        self.counts = counts
        self.lengths: torch.Tensor | None = None

    def padded(self, rows: slice = slice(None)) -> torch.Tensor:
        """(b, G, longest, ...) of these rows, zeros behind the end of each segment; longest among all rows."""
        heads, longest = len(self.counts[0]), max(count for row in self.counts for count in row)
        start, stop, _ = rows.indices(len(self.counts))
        each = self._segments()[start * heads : stop * heads]
        if max(map(len, each)) < longest:  # pad_sequence pads to the longest that it is given
            each[0] = torch.cat([each[0], each[0].new_zeros(longest - len(each[0]), *each[0].shape[1:])])
        return pad_sequence(each, batch_first=True).unflatten(0, (stop - start, heads))

    def valid(self) -> torch.Tensor:
        """(B, G, longest) bool: which slots of `padded` hold a token, and are no padding."""
        if self.lengths is None:
            self.lengths = torch.tensor(self.counts, dtype=torch.int32, device=self.tensor.device)
        longest = max(count for row in self.counts for count in row)
        return torch.arange(longest, device=self.tensor.device) < self.lengths.unsqueeze(2)

    def select(self, rows: Sequence[int] | torch.Tensor) -> Flat:
        """Copies of these rows."""
        heads, segments = len(self.counts[0]), self._segments()
        chosen = [int(row) for row in rows]
        parts = [segments[row * heads + head] for row in chosen for head in range(heads)]
        return Flat(torch.cat(parts), [self.counts[row] for row in chosen])

    def _segments(self) -> list[torch.Tensor]:
        return list(self.tensor.split([count for row in self.counts for count in row]))


class ValidSlots:
    """The slots of a valid mask (B, G, m). The host reads it twice, however many tensors are cut by it."""

    def __init__(self, valid: torch.Tensor) -> None:
        self.at = valid.flatten().nonzero().squeeze(1)
        self.lengths = valid.sum(dim=2, dtype=torch.int32)
        self.counts: list[list[int]] = self.lengths.tolist()

    def of(self, padded: torch.Tensor) -> Flat:
        """The valid slots of padded (B, G, m, ...)."""
        return Flat(padded.flatten(0, 2).index_select(0, self.at), self.counts)


class RaggedLayer(CacheLayer):
    """Keys, values and positions of what was kept (Flats), and of what came since (buffers). Padded, everything is
    (B, G, m, ...): the kept slots, padding, then the new ones; `valid` (B, G, m) tells them from the padding.
    """

    meta: tuple[str, ...] = ("kept", "kept_positions")
    uneven = True

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kept_keys: Flat | None = None
        self.kept_values: Flat | None = None
        self.kept_positions: Flat | None = None

    @property
    def keys(self) -> torch.Tensor:
        """(B, G, m, d), zeros as padding."""
        return self._whole(self.kept_keys, super().keys)

    @property
    def values(self) -> torch.Tensor:
        """(B, G, m, d), zeros as padding."""
        return self._whole(self.kept_values, super().values)

    @property
    def positions(self) -> torch.Tensor:
        """(B, G, m) int32; 0 as padding."""
        return self._whole(self.kept_positions, super().positions)

    @property
    def valid(self) -> torch.Tensor:
        """(B, G, m) bool: what is no padding."""
        new = torch.ones(*super().keys.shape[:3], dtype=torch.bool, device=super().keys.device)
        return new if self.kept_positions is None else torch.cat([self.kept_positions.valid(), new], dim=2)

    @property
    def stored(self) -> int:
        """m, the slots of the longest head."""
        return self.longest + super().stored

    @property
    def longest(self) -> int:
        """Kept slots of the longest head."""
        return 0 if self.kept_keys is None else max(count for row in self.kept_keys.counts for count in row)

    @property
    def slots(self) -> float:
        """Slots per row and kv head, on average."""
        if self.kept_keys is None:
            return float(super().stored)
        counts = [count for row in self.kept_keys.counts for count in row]
        return sum(counts) / len(counts) + super().stored

    @staticmethod
    def _whole(kept: Flat | None, new: torch.Tensor) -> torch.Tensor:
        return new if kept is None else torch.cat([kept.padded(), new], dim=2)

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of these rows of the batch alone."""
        if self.kept_keys is None or self.kept_values is None:
            return super().read(rows, dtype)
        keys, values = super().keys[rows], super().values[rows]
        keys = torch.cat([self.kept_keys.padded(rows), keys], dim=2)
        return keys.to(dtype), torch.cat([self.kept_values.padded(rows), values], dim=2).to(dtype)

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Causal attention over valid slots."""
        if self.kept_keys is None:
            return super().attention(query, keys, values, rows)
        mask = self.valid[rows].repeat_interleave(self.shape.group, dim=1).unsqueeze(2)
        tokens, columns = query.shape[2], keys.shape[2]
        if tokens > 1:
            mask = mask & torch.ones(tokens, columns, dtype=torch.bool, device=query.device).tril(columns - tokens)
        return kernels.attend_masked(query, keys, values, mask, self.scaling, self.softmax)

    def keep_where(self, wanted: torch.Tensor) -> None:
        """Keep the valid slots of `wanted` (B, G, m)."""
        self.store(self.keys, self.values, self.positions, wanted & self.valid)

    def store(
        self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, valid: torch.Tensor
    ) -> ValidSlots:
        """Hold these slots and no others: padded (B, G, m, d), (B, G, m, d), (B, G, m), and which of them are valid."""
        slots = ValidSlots(valid)
        self.kept_keys, self.kept_values = slots.of(keys), slots.of(values)
        self.kept_positions = slots.of(positions.int())
        self.kept_positions.lengths = slots.lengths
        self.k, self.v = GrowableBuffer(keys[:, :, :0].clone()), GrowableBuffer(values[:, :, :0].clone())
        self.kept, self._kept_at = None, self.seen
        return slots
