"""Rows that cannot be fed together: prompts of unequal length, and caches that know no batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from kvcheck.methods.cache import KVCache
from kvcheck.methods.host import Host


class RowCache:
    """One cache of one sequence for each row. rows: whatever the host feeds; copied by `select` where it has one."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = list(rows)

    def select(self, rows: Sequence[int] | torch.Tensor) -> RowCache:
        """Copies of these rows, in this order; repeats allowed."""
        wanted = [self.rows[int(row)] for row in rows]
        return RowCache([row.select([0]) if isinstance(row, KVCache) else copy.deepcopy(row) for row in wanted])


class RowHost(Host):
    """Feeds row by row. A subclass says how one row is prefilled and fed."""

    def prefill(self, ids: torch.Tensor) -> tuple[RowCache, torch.Tensor]:
        """As Host.prefill, every row by itself."""
        parts = [self.prefill_row(row) for row in ids.split(1)]
        return RowCache([cache for cache, _ in parts]), torch.cat([logits for _, logits in parts])

    def feed(self, cache: RowCache, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """As Host.feed, every row by itself."""
        pairs = zip(cache.rows, ids.split(1), strict=True)
        return torch.cat([self.feed_row(row, fed, keep) for row, fed in pairs])

    def prefill_row(self, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """One prompt (1, n) -> its cache, and the logits (1, V) behind it."""
        return super().prefill(ids)

    def feed_row(self, cache: Any, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Feed (1, q) into the cache of one row -> (1, keep, V)."""
        return super().feed(cache, ids, keep)
