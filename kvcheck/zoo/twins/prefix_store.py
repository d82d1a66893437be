"""A prefix cache: blocks of tokens that were computed once are looked up by their hash and not computed again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.methods.fp16 import Fp16
from kvcheck.zoo.twins._pool import Pool

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel


@dataclass(frozen=True)
class PrefixStore(Fp16):
    """The full cache, whose complete blocks come out of a store that all prompts share.

    block: tokens of a block (16). chunk: tokens that are computed at a time while the store is filled (40).
    capacity: blocks that the store holds, the least recently used ones leave (1024). staging: blocks of one prompt that
    can be written before it ends (48); further ones are not stored.

    Every prompt is served by a hit: what the store lacks of its complete blocks is computed and stored first, then all
    of them are looked up, and the rest is fed, which is at least the last token. Answers and bytes of a cache are those
    of the full cache; the store is not part of it.
    """

    info: ClassVar[MethodInfo] = replace(
        Fp16.info, summary="the full cache, from a store of prefixes", stage="loading", shares_prefill=False
    )

    block: int = 16
    chunk: int = 40
    capacity: int = 1024
    staging: int = 48

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        for name, example in (("block", 16), ("chunk", 40), ("capacity", 1024), ("staging", 48)):
            checks.whole(self.name(), name, getattr(self, name), 1, example)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Owns the store."""
        return StoreRunner(self, loaded)


class StoreRunner(MethodRunner):
    """Fills the store, looks up, feeds the rest."""

    method: PrefixStore

    def __init__(self, method: PrefixStore, loaded: LoadedModel) -> None:
        super().__init__(method, loaded)
        self.pool = self.new_pool()

    def new_pool(self) -> Pool:
        """An empty store."""
        return Pool(self.method.capacity, self.method.staging)

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """Serve prompts (R, n) out of the store, after what it lacks has been stored."""
        warm = [bool(self.hits(row)) for row in ids]
        for row in ids:
            self.fill(row)
        table = self.table(ids, warm)
        cache, start = self.restored(table, ids.shape[1])
        return cache, self.feed(cache, ids[:, start:])[:, -1]

    # -- looking up ----------------------------------------------------------------------------------------------------

    def keys(self, row: torch.Tensor) -> list[tuple[bytes, bytes]]:
        """(key, tokens up to its end) of every complete block of a prompt (n,)."""
        size, found, parent = self.method.block, [], self.root()
        for end in range(size, len(row) + 1, size):
            parent = self.pool.key(parent, _bytes(row[end - size : end]))
            found.append((parent, self.root() + _bytes(row[:end])))
        return found

    def root(self) -> bytes:
        """What all keys start from: whatever else decides what keys and values are."""
        return b""

    def hits(self, row: torch.Tensor) -> list[int]:
        """The pages of the first blocks of a prompt, up to the first that is not stored."""
        pages = []
        for key, prefix in self.keys(row):
            page = self.pool.find(key, prefix)
            if page is None:
                break
            pages.append(page)
        return pages

    def table(self, ids: torch.Tensor, warm: list[bool]) -> torch.Tensor:
        """Pages (R, m) of the blocks that are stored of all prompts. warm: which had a hit before this request."""
        pages = [self.hits(row) for row in ids]
        count = min(len(each) for each in pages)
        return torch.tensor([each[:count] for each in pages], dtype=torch.long).view(len(ids), count)

    def restored(self, table: torch.Tensor, tokens: int) -> tuple[KVCache, int]:
        """A cache of the pages, less the last of `tokens` tokens, and the place from which on tokens are to be fed."""
        length = min(table.shape[1] * self.method.block, tokens - 1)
        return self.filled(self.pool.load(table)[..., :length, :] if length else None), length

    def filled(self, states: torch.Tensor | None) -> KVCache:
        """A cache that holds keys and values (L, 2, R, G, n, d); an empty one for None."""
        cache = self.build()
        for layer, part in zip(cache.layers, [] if states is None else states, strict=states is not None):
            layer.store_dtype = part.dtype
            layer.k, layer.v = (GrowableBuffer(each.clone(memory_format=torch.contiguous_format)) for each in part)
            layer.seen = part.shape[3]
            layer.is_initialized = True
        return cache

    # -- filling -------------------------------------------------------------------------------------------------------

    def fill(self, row: torch.Tensor) -> None:
        """Compute and store what is not stored of the complete blocks of a prompt (n,)."""
        self.compute(row, len(row) // self.method.block * self.method.block)
        self.pool.flush()

    def compute(self, row: torch.Tensor, until: int) -> list[int]:
        """Compute a prompt chunk by chunk up to a token, and publish its blocks as they get complete -> their pages."""
        hits = self.hits(row)
        start = len(hits) * self.method.block
        if start >= until:
            return []
        cache = self.filled(self.pool.load(torch.tensor([hits])) if hits else None)
        published: list[int] = []
        with cache.prefilling():
            for at in range(start, until, self.method.chunk):
                self.feed(cache, row[None, at : min(at + self.method.chunk, until)])
                published += self.publish(row, cache, self.complete(cache.seen))
        return published

    def complete(self, seen: int) -> int:
        """How many blocks can be published of a prompt of which so many tokens have been computed."""
        return seen // self.method.block

    def publish(self, row: torch.Tensor, cache: KVCache, blocks: int) -> list[int]:
        """Store the first blocks of a prompt, as far as they are not stored -> the new pages."""
        size, pages = self.method.block, []
        for at, (key, prefix) in enumerate(self.keys(row[: blocks * size])):
            if key not in self.pool.index:
                pages.append(self.pool.put(key, prefix, _block(cache, at * size, size)))
        return [page for page in pages if page is not None]


def _bytes(tokens: torch.Tensor) -> bytes:
    return tokens.cpu().numpy().tobytes()


def _block(cache: KVCache, start: int, size: int) -> torch.Tensor:
    """Keys and values of one block of a cache of one sequence (L, 2, G, size, d); zero where there are none yet."""
    parts = [torch.stack([layer.keys[0], layer.values[0]])[:, :, start : start + size] for layer in cache.layers]
    block = torch.stack(parts)
    return torch.nn.functional.pad(block, (0, 0, 0, size - block.shape[3]))
