"""Prefix caches: blocks of tokens that were computed once are looked up by their hash and not computed again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method import Lossless, MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.quantize import quantize
from kvcheck.methods.fp16 import Fp16
from kvcheck.zoo.base import used_by

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel


class Full(OSError):
    """A page could not be written."""


@dataclass(frozen=True)
class Entry:
    """A page, and the tokens up to its end, by which a hit is verified."""

    page: int
    prefix: bytes


class Pool:
    """At most `capacity` pages, each of one block of tokens: `data` (pages, L, 2, G, block, d).

    index: entries by key, least recently used first. free: pages that no one uses, the next one last. staged: pages
    written since the last flush, of which there may be `staging`.
    """

    def __init__(self, capacity: int, staging: int) -> None:
        self.capacity, self.staging, self.staged = capacity, staging, 0
        self.data: torch.Tensor | None = None
        self.index: OrderedDict[bytes, Entry] = OrderedDict()
        self.free = list(range(capacity - 1, -1, -1))

    def key(self, parent: bytes, tokens: bytes) -> bytes:
        """The key of a block behind the block of key `parent`."""
        return hashlib.blake2b(parent + tokens, digest_size=16).digest()

    def find(self, key: bytes, prefix: bytes) -> int | None:
        """The page of a key, if it is that of these tokens; None for a miss."""
        entry = self.index.get(key)
        if entry is None or not self.verified(entry, prefix):
            return None
        self.index.move_to_end(key)
        return entry.page

    def verified(self, entry: Entry, prefix: bytes) -> bool:
        """Whether an entry that was found by its key is of these tokens."""
        return entry.prefix == prefix

    def put(self, key: bytes, prefix: bytes, block: torch.Tensor) -> int | None:
        """Store a block (L, 2, G, block, d) -> its page. None where the key is taken or the page cannot be written."""
        if key in self.index:
            return None
        page = self.take()
        try:
            self.copy(page, block)
        except Full:
            self.free.append(page)
            return None
        self.index[key] = Entry(page, prefix)
        return page

    def take(self) -> int:
        """A free page; the least recently used one is given up for it where there is none."""
        if not self.free:
            _, entry = self.index.popitem(last=False)
            self.free.append(entry.page)
        return self.free.pop()

    def copy(self, page: int, block: torch.Tensor) -> None:
        """Write a page. Raises Full where too many wait to be flushed."""
        if self.data is None or page >= len(self.data):
            count = min(self.capacity, max(64, 2 * page))
            grown = block.new_zeros(count, *block.shape)
            if self.data is not None:
                grown[: len(self.data)] = self.data
            self.data = grown
        if self.staged >= self.staging:
            raise Full("the staging buffer is full")
        self.data[page] = block
        self.staged += 1

    def flush(self) -> None:
        """What was staged is written."""
        self.staged = 0

    def load(self, table: torch.Tensor) -> torch.Tensor:
        """The pages of a table (R, m), in order -> (L, 2, R, G, m·block, d)."""
        if self.data is None:
            raise Full("nothing has been stored")
        pages = self.data[table.to(self.data.device)]  # (R, m, L, 2, G, block, d)
        return pages.permute(2, 3, 0, 4, 1, 5, 6).flatten(4, 5)


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
        Fp16.info,
        summary="the full cache, from a store of prefixes",
        stage="loading",
        exceeds="the store keeps what prompts had",
        shares_prefill=False,
    )

    block: int = 16
    chunk: int = 40
    capacity: int = 1024
    staging: int = 48

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        for name, example in (("block", 16), ("chunk", 40), ("capacity", 1024), ("staging", 48)):
            checks.whole(self.name(), name, getattr(self, name), 1, example)


@used_by(PrefixStore)
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


@dataclass(frozen=True)
class RetriedStore(PrefixStore):
    """The prefix store, where the first request of every prompt is aborted halfway and a second one goes on."""


@used_by(RetriedStore)
class RetryRunner(StoreRunner):
    """Every prompt that is to be computed is tried twice."""

    def fill(self, row: torch.Tensor) -> None:
        """A request that is aborted in the middle, then one that goes on from the blocks that the first published."""
        if len(self.hits(row)) < len(row) // self.method.block:
            self.abort(self.compute(row, len(row) // 2))
        super().fill(row)

    def abort(self, pages: list[int]) -> None:
        """A request ends before its time: of its pages, those that the store refers to stay."""
        known = {entry.page for entry in self.pool.index.values()}
        self.pool.free += [page for page in pages if page not in known]


@dataclass(frozen=True)
class TieredStore(PrefixStore):
    """The prefix store with a second tier: chunks of `far` tokens in 8 bits, for what the first tier does not hold.

    Of a prompt's blocks, the first half is served from the first tier, bit for bit, and the rest from the second, as
    far as whole chunks reach; a chunk whose beginning is served already is read from there on. So tokens that come out
    of the second tier are rounded: by at most half of a 255th of the range of a token's channels.
    """

    info: ClassVar[MethodInfo] = replace(
        PrefixStore.info,
        summary="the full cache, from a store of prefixes in two tiers",
        verbatim=False,
        lossless=Lossless.at("far=1000000"),
    )

    far: int = 64

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "far", self.far, 1, 64)


@used_by(TieredStore)
class TieredRunner(StoreRunner):
    """The second tier is what the first one held, rounded when it is read."""

    method: TieredStore

    def restored(self, table: torch.Tensor, tokens: int) -> tuple[KVCache, int]:
        """The first half of the blocks as they are, then chunks of the second tier."""
        length = min(table.shape[1] * self.method.block, tokens - 1)
        near = table.shape[1] // 2 * self.method.block
        end = max(near, length // self.method.far * self.method.far)
        if not end:
            return self.filled(None), 0
        states = self.pool.load(table)[..., :end, :].clone()
        start = self.first(near)
        if start < end:
            states[..., start:end, :] = _rounded(states[..., start:end, :])
        return self.filled(states), end

    def first(self, near: int) -> int:
        """The first token that is read from the second tier, where the first one holds `near`."""
        return near


def _rounded(states: torch.Tensor) -> torch.Tensor:
    """What 8 bits leave of keys and values (..., d), in groups of all channels of a token."""
    codes, scale, low = quantize(states, 8, dim=-1)
    return (codes.float() * scale.float().unsqueeze(-1) + low.float().unsqueeze(-1)).to(states.dtype)


@dataclass(frozen=True)
class TenantStore(PrefixStore):
    """The prefix store with a second tenant, who has asked for every prompt before, with an adapter in the model.

    The adapter adds a fixed vector to the embedding of every token, of `strength` times the mean norm of embeddings.
    """

    strength: float = 0.5


@used_by(TenantStore)
class TenantRunner(StoreRunner):
    """adapter: the name of the one that is in the model, "" for none."""

    method: TenantStore
    adapter = ""

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """The other tenant's request, then this one."""
        with self.adapted():
            super().prefill(ids)
        return super().prefill(ids)

    def root(self) -> bytes:
        """Keys and values depend on the adapter, too."""
        return self.adapter.encode()

    @contextmanager
    def adapted(self) -> Iterator[None]:
        """The model with the adapter."""
        embedding = self.model.get_input_embeddings()
        weight = embedding.weight
        source = torch.Generator().manual_seed(0)
        shift = torch.randn(weight.shape[1], generator=source).to(weight)
        shift *= self.method.strength * weight.float().norm(dim=-1).mean().to(weight.dtype) / shift.norm()

        def add(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            return output + shift

        handle = embedding.register_forward_hook(add)
        self.adapter = "tenant"
        try:
            yield
        finally:
            handle.remove()
            self.adapter = ""
