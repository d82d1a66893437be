"""Bugs of batches: what a row is told depends on who is beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.layer import Rows
from kvcheck.cache.shape import Prefilled
from kvcheck.methods.kivi import KIVI
from kvcheck.methods.streaming_llm import StreamingLayer, StreamingLLM
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.neighbour import Neighbour, NeighbourRunner, PadLayer
from kvcheck.zoo.counterparts.paged import Paged, PagedLayer
from kvcheck.zoo.counterparts.prefix_store import PrefixStore, StoreRunner

if TYPE_CHECKING:
    from typing_extensions import Self


@bug("inherited-method-swaps-plain-cache", "https://github.com/rajveer43/VeloxQuant-MLX/issues/358")
class InheritedMethodSwapsPlainCache(KIVI):
    """Before the first token of more than one row, the layers are replaced by plain ones in 16 bits; nothing is ever
    quantized, and the cache goes on calling itself what it was.

    From a serving loop that merged the caches of a batch by a method that the custom cache had inherited. Shows for
    batches; a single row is served as declared.
    """


@used_by(InheritedMethodSwapsPlainCache)
class _Merged(KVCache):
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Merge, then take in."""
        if not self.seen and len(key_states) > 1:
            self.merge()
        return super().update(key_states, value_states, layer_idx)

    def absorb(self, prefilled: Sequence[Prefilled]) -> None:
        """Merge, then take in."""
        if len(prefilled[0].keys) > 1:
            self.merge()
        super().absorb(prefilled)

    def merge(self) -> None:
        """Plain layers, as the base class makes them."""
        plain = [CacheLayer(layer.shape, layer.index, layer.method) for layer in self.layers]
        for old, new in zip(self.layers, plain, strict=True):
            new.store_dtype, new._held, new._keeps = old.store_dtype, old._held, old._keeps
        self.layers = plain


@bug("padding-mask-dropped-by-generator", "https://github.com/Blaizzy/mlx-vlm/pull/1946")
class PaddingMaskDroppedByGenerator(Neighbour):
    """Rows are padded at the left, and the caches are not told: the padding is context like any other, and the
    positions of a row start with it.

    From a batched generator that dropped the mask of the tokenizer. Shows for rows that are shorter than another one of
    their batch.
    """


@used_by(PaddingMaskDroppedByGenerator)
class _Silent(NeighbourRunner):
    def announce(self, cache: KVCache, pads: torch.Tensor) -> None:
        """No row has any."""
        super().announce(cache, torch.zeros_like(pads))


@bug("cold-row-gets-slot-zero", "https://github.com/vllm-project/vllm/pull/7018")
class ColdRowGetsSlotZero(PrefixStore):
    """The table of pages is made out for rows that had a hit when the request came; if there is one, those without get
    a table of zeros, and read page 0 again and again.

    From an engine that built its tables from the hits of a batch. Shows in batches of rows with a hit and rows without.
    """


@used_by(ColdRowGetsSlotZero)
class _ZeroFilled(StoreRunner):
    def table(self, ids: torch.Tensor, warm: list[bool]) -> torch.Tensor:
        """Zeros for cold rows of a mixed batch."""
        found = super().table(ids, warm)
        if any(warm):
            found[[row for row, hit in enumerate(warm) if not hit]] = 0
        return found


@bug("stale-page-table-tail", "https://github.com/gittensor-ai-lab/sparkinfer/pull/185")
@dataclass(frozen=True)
class StalePageTableTail(Paged):
    """A row of the page table that is used again is overwritten as far as the new sequence reaches at first; behind
    that stand pages of the former one, and when the sequence grows it takes them for its own, while they are free and
    are given to others, too.

    From an engine with a fixed table of slots. Shows when a slot is used again and the sequence grows past its first
    pages: here for batches of prompts of several chunks behind others.
    """


@used_by(StalePageTableTail)
class _Uncleared(PagedLayer):
    def forget(self) -> None:
        """The table is overwritten anyway."""


@bug("append-position-from-max-offset", "https://github.com/jundot/omlx/issues/2172")
class AppendPositionFromMaxOffset(Neighbour):
    """New tokens are written to the column that is the largest number of tokens of any row; when the only row without
    padding has left, that lies before the end of the others, and their newest tokens are overwritten.

    From a batched cache in which requests of unequal length met. Shows when the longest row has ended and others go on.
    """


@used_by(AppendPositionFromMaxOffset)
class _ByOffset(PadLayer):
    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """From the largest offset on; what reaches beyond the end is appended."""
        column = int(self.offsets.max()) if len(self.offsets) else self.columns
        over = min(self.columns - column, keys.shape[2])
        if over > 0 and self.k is not None and self.v is not None:
            for buffer, block in ((self.k, keys), (self.v, values)):
                buffer.used[:, :, column : column + over] = block[:, :, :over]
            self.offsets = self.offsets + over
            keys, values = keys[:, :, over:], values[:, :, over:]
        if keys.shape[2]:
            super().write(keys, values)


@bug("filter-leaves-side-metadata", "https://github.com/Blaizzy/mlx-vlm/issues/1889")
class FilterLeavesSideMetadata(Neighbour):
    """When a row leaves the batch, keys, values and offsets are filtered, the lengths of the padding are not: every row
    behind it goes on with the padding of the row before.

    From a server in which requests were cancelled during their prefill. Shows when a row leaves whose padding is not
    that of the row behind it.
    """


@used_by(FilterLeavesSideMetadata)
class _Unfiltered(KVCache):
    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """All but the padding."""
        pads = [layer.pads for layer in self.layers if isinstance(layer, PadLayer)]
        super().batch_select_indices(indices)
        for layer, before in zip(self.layers, pads, strict=True):
            if isinstance(layer, PadLayer):
                layer.pads = before


@bug("sinks-lost-when-row-extracted", "https://github.com/ml-explore/mlx-lm/issues/1631")
class SinksLostWhenRowExtracted(StreamingLLM):
    """A layer that rows are copied from is made anew without its number of sinks; the copy protects none, and evicts
    the first tokens with the next one that comes.

    From a rotating cache whose merging and extracting left out an argument of the constructor. Shows for rows that were
    taken out of a batch, or forked, once the window is full.
    """


@used_by(SinksLostWhenRowExtracted)
class _Forgetful(StreamingLayer):
    def select(self, rows: Rows) -> Self:
        """The default of the constructor is no sinks."""
        selected = super().select(rows)
        selected.method = replace(selected.method, sink=0)
        return selected
