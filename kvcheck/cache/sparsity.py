"""Sparse attention of a prompt: the base of methods that act while prefilling only and keep the full cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kvcheck.cache import kernels, scoring
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.core.errors import KvcheckError

ROWS = 128  # query rows that share one gathering of keys


class SparsePrefillLayer(CacheLayer):
    """The full cache. The tokens of the prompt attend by `sparse`, all later ones densely."""

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Sparse attention until the prompt is in."""
        if self.prompt is not None:
            return super().attention(query, keys, values, rows)
        return self.sparse(query, keys, values)

    def dense(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What the full cache computes, bit for bit."""
        return super().attention(query, keys, values, slice(None))

    def sparse(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention of the prompt's newest q tokens to all c fed so far: (B, H, q, d), (B, G, c, d) -> (B, H, q, d)."""
        raise NotImplementedError(f"{type(self).__name__} must define sparse(query, keys, values)")

    def refuse_chunks(self, past: int, why: str, hint: str) -> None:
        """Raise KvcheckError at the second chunk of a prompt, `past` tokens of which are in already."""
        if past:
            raise KvcheckError(f"{self.method.name()}: the prompt is fed in chunks, and {why}", hint)


def a_shape(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    n_init: int,
    n_local: int,
    softmax: kernels.Softmax,
) -> torch.Tensor:
    """The newest q of c tokens; position i sees the j <= i with i - j < n_local or j < n_init -> (B, H, q, d).

    A block of rows gathers the sinks and its windows, n_init + n_local + ROWS keys at most; what lies between is never
    read.
    """
    past = keys.shape[2] - query.shape[2]
    out = query.new_empty(*query.shape[:3], values.shape[3])
    for start in range(0, query.shape[2], ROWS):
        block = query[:, :, start : start + ROWS]
        first, last = past + start, past + start + block.shape[2]
        near = max(0, first - n_local + 1)
        sinks = min(n_init, near)
        slots = torch.arange(last, device=query.device)
        columns = torch.cat([slots[:sinks], slots[near:]])
        mask = a_shape_mask(slots[first:], columns, n_init, n_local)
        k, v = (torch.cat([each[:, :, :sinks], each[:, :, near:last]], dim=2) for each in (keys, values))
        out[:, :, start : start + ROWS] = kernels.attend_masked(block, k, v, mask, scaling, softmax)
    return out


def a_shape_mask(rows: torch.Tensor, columns: torch.Tensor, n_init: int, n_local: int) -> torch.Tensor:
    """Which positions `columns` (c,) the positions `rows` (r,) see -> (r, c) bool."""
    distance = rows[:, None] - columns
    return (distance >= 0) & ((distance < n_local) | (columns < n_init))


def row_blocks(query: torch.Tensor, columns: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of the query's rows, so small that a mask over `columns` per query head stays small."""
    rows = max(1, scoring.budget(query.device) // (query.shape[0] * query.shape[1] * columns))
    for start in range(0, query.shape[2], rows):
        yield start, min(start + rows, query.shape[2])
