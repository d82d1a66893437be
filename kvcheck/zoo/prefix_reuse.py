"""Bugs of prefix caches and rollback: a hit is not what a miss would have been."""

from __future__ import annotations

import torch

from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import KVCache
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.live_session import CropLayer, LiveSession, SessionRunner
from kvcheck.zoo.counterparts.prefix_store import (
    Entry,
    Pool,
    PrefixStore,
    RetriedStore,
    RetryRunner,
    StoreRunner,
    TenantRunner,
    TenantStore,
    TieredRunner,
    TieredStore,
)
from kvcheck.zoo.counterparts.ring import Ring, RingLayer


@bug("partial-chunk-overwrites-live-rows", "https://github.com/LMCache/LMCache/issues/2206")
class PartialChunkOverwritesLiveRows(TieredStore):
    """Where the first tier ends inside a chunk of the second, that chunk is written from its beginning: over tokens
    that were there already, exact, with the rounded ones of the other tier.

    From the border between an engine's prefix cache and a store with coarser chunks. Shows when the first tier's tokens
    are no multiple of the chunk.
    """


@used_by(PartialChunkOverwritesLiveRows)
class _WholeChunks(TieredRunner):
    def first(self, near: int) -> int:
        """Rounded down."""
        return near // self.method.far * self.method.far


@bug("full-hit-at-exact-multiple", "https://github.com/LMCache/LMCache/issues/5151")
class FullHitAtExactMultiple(PrefixStore):
    """When all of a prompt is stored, its last token is computed again for the logits, but the cache that comes out of
    the store contains it already: it is there twice, and everything behind it is one position late.

    From a store between an engine and its scheduler, which disagreed by one on a full hit. Shows for prompts that are
    an exact multiple of the block.
    """


@used_by(FullHitAtExactMultiple)
class _Everything(StoreRunner):
    def restored(self, table: torch.Tensor, tokens: int) -> tuple[KVCache, int]:
        """All of the pages."""
        length = table.shape[1] * self.method.block
        return self.filled(self.pool.load(table) if length else None), min(length, tokens - 1)


@bug("prefix-store-drops-one-token", "https://github.com/waybarrios/vllm-mlx/pull/311")
class PrefixStoreDropsOneToken(PrefixStore):
    """What is stored of a prefix is one token shorter than the tokens that it is stored under, so that a full hit can
    compute the last one; a partial hit goes on behind the key, and one token is in neither part.

    From a server whose exact hits were right and whose partial hits were not. Shows for every prompt that is not an
    exact multiple of the block.
    """


@used_by(PrefixStoreDropsOneToken)
class _Shortened(StoreRunner):
    def restored(self, table: torch.Tensor, tokens: int) -> tuple[KVCache, int]:
        """One token less than the key says; a full hit makes up for it."""
        length = table.shape[1] * self.method.block
        states = self.pool.load(table)[..., : length - 1, :] if length else None
        return self.filled(states), min(length, tokens - 1)


@bug("reuse-by-length-not-identity", "https://github.com/osaurus-ai/vmlx-swift/pull/163")
class ReuseByLengthNotIdentity(LiveSession):
    """A live cache that is no longer than the new prompt is taken for its beginning; whether the tokens agree is not
    looked at.

    From a session that fell back to its live cache after the lookup had missed. Shows when the next prompt of a
    session is at least as long and differs somewhere inside.
    """


@used_by(ReuseByLengthNotIdentity)
class _ByLength(SessionRunner):
    def common(self, ids: torch.Tensor, before: torch.Tensor) -> int:
        """All that is there, if it fits."""
        if before.shape[1] <= ids.shape[1]:
            return min(before.shape[1], ids.shape[1] - 1)
        return super().common(ids, before)


@bug("prefix-key-omits-conditioning", "https://github.com/vllm-project/vllm/issues/3264")
class PrefixKeyOmitsConditioning(TenantStore):
    """Blocks are found by their tokens alone, so that a request without adapter gets keys and values that were computed
    with the adapter of another one.

    From an engine that served several adapters out of one prefix cache. Shows when another tenant has asked for the
    same tokens before.
    """


@used_by(PrefixKeyOmitsConditioning)
class _TokensAlone(TenantRunner):
    def root(self) -> bytes:
        """The same for all."""
        return b""


@bug("truncated-hash-without-verification", "https://github.com/LMCache/LMCache/issues/4086")
class TruncatedHashWithoutVerification(PrefixStore):
    """The key of a block is 16 bits of its hash, and what is found under it is not compared with the tokens; two blocks
    whose keys collide share the page of the first.

    From a store that shortened the hash of what tells equal tokens apart. Shows once enough blocks are stored: of a
    full store of 1024, one new block in 64 finds a foreign one.
    """


class _ShortKeys(Pool):
    def key(self, parent: bytes, tokens: bytes) -> bytes:
        """Two bytes of it."""
        return super().key(parent, tokens)[:2]

    def verified(self, entry: Entry, prefix: bytes) -> bool:
        """Not looked at."""
        return True


@used_by(TruncatedHashWithoutVerification)
class _Short(StoreRunner):
    def new_pool(self) -> Pool:
        """An empty store."""
        return _ShortKeys(self.method.capacity, self.method.staging)


@bug("incomplete-block-registered-as-full", "https://github.com/vllm-project/vllm/pull/34587")
class IncompleteBlockRegisteredAsFull(PrefixStore):
    """A chunk of the prompt that ends inside a block publishes that block, too, under the key of the whole block; the
    tokens that it lacks are never written, since the key is taken when they come.

    From an engine whose chunks were not aligned to its blocks. Shows for prompts longer than a chunk that is no
    multiple of the block.
    """


@used_by(IncompleteBlockRegisteredAsFull)
class _Early(StoreRunner):
    def complete(self, seen: int) -> int:
        """The block that has been begun counts."""
        return -(-seen // self.method.block)


@bug("inflight-pages-published-then-freed", "https://github.com/sgl-project/sglang/issues/38319")
class InflightPagesPublishedThenFreed(RetriedStore):
    """A request publishes its blocks while it runs; when it is aborted all of its pages are freed, those that the index
    refers to among them, and the next blocks that are stored are written over them.

    From a scheduler that published chunks before the request was through. Shows for every later prompt with the prefix
    of an aborted one, until the store is flushed.
    """


@used_by(InflightPagesPublishedThenFreed)
class _FreesAll(RetryRunner):
    def abort(self, pages: list[int]) -> None:
        """All of the request's pages."""
        self.pool.free += pages


@bug("hit-path-without-block-table", "https://github.com/tanishqkumar/ssd/issues/23")
class HitPathWithoutBlockTable(PrefixStore):
    """On a hit the pages are not read by the table but from the start of the pool on, as many as the hit has.

    From an engine that handed the whole pool to its kernel and left the table out, in this path alone. Shows as soon as
    other prompts have taken the first pages of the pool.
    """


@used_by(HitPathWithoutBlockTable)
class _FromZero(StoreRunner):
    def table(self, ids: torch.Tensor, warm: list[bool]) -> torch.Tensor:
        """The first pages, for every row."""
        found = super().table(ids, warm)
        return torch.arange(found.shape[1]).expand_as(found)


@bug("ring-trim-rolls-counters-only", "https://github.com/ml-explore/mlx-swift-lm/pull/584")
class RingTrimRollsCountersOnly(Ring):
    """A rollback moves the head of the ring back and leaves the entries alone; of a full ring, which is read from its
    head on, those that were taken back are then the oldest.

    From a rotating cache under speculative decoding. Shows when tokens are taken back from a ring that is full; before
    that it is right.
    """


@used_by(RingTrimRollsCountersOnly)
class _Counters(RingLayer):
    def roll_back(self, count: int) -> None:
        """The head alone, where the ring is full."""
        if self.wrapped:
            self.head = (self.head - count) % self.method.size
        else:
            super().roll_back(count)


@bug("crop-zero-keeps-everything", "https://github.com/huggingface/transformers/issues/47433")
class CropZeroKeepsEverything(LiveSession):
    """One signed argument says how many tokens to leave, or how many to take back; zero is taken for the latter, so
    that a cache that is to be cleared keeps everything, and to take back more than there is slices from the wrong end.

    From the cropping of a widely used dynamic cache. Shows when two prompts of a session have no token in common at
    their start, and wherever crop(0) or more than everything is asked for.
    """


@used_by(CropZeroKeepsEverything)
class _Signed(CropLayer):
    def crop(self, tokens: int = 0) -> None:
        """Not above zero is relative, and may end below zero."""
        if tokens <= 0:
            tokens = self.seen - abs(tokens)
        if self.seen <= tokens or self.k is None or self.v is None:
            return
        self.k, self.v = (GrowableBuffer(buffer.used[:, :, :tokens].clone()) for buffer in (self.k, self.v))
        self.seen, self.prompt = self.k.length, None
