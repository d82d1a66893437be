"""Bugs of chunked prefill: prompts that come in several forwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.cake import Cake
from kvcheck.methods.h2o import H2OLayer
from kvcheck.methods.mixattention import MadeLayer, ReadLayer
from kvcheck.methods.streaming_llm import StreamingLayer
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.chunked import (
    Blockwise,
    BlockwiseLayer,
    BlockwiseRunner,
    Chunked,
    ChunkedH2O,
    ChunkedMix,
    ChunkedRunner,
    ChunkedStreamingLLM,
)

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel


@bug("oracle-hidden-states-in-simulated-chunks", "https://github.com/NVIDIA/kvpress/issues/186")
class OracleHiddenStatesInSimulatedChunks(Blockwise):
    """The prompt is run in one forward with the full cache, and the cuts behind its chunks are played through on the
    finished keys and queries: later chunks are computed from tokens that a real run would have dropped by then.

    From kvpress, whose block-wise press was offered as chunked prefill. Shows on every prompt that is cut before its
    end, as answers that are better than those of the method.
    """


@used_by(OracleHiddenStatesInSimulatedChunks)
class SimulatedLayer(BlockwiseLayer):
    """Cuts a prompt that is in."""

    def compress(self, queries: torch.Tensor) -> None:
        """Let the chunks come one by one, as if they had; keep what is left."""
        cap, start = self.method.cap(self.seen), 0
        kept = self.every_head(torch.arange(0, device=self.keys.device))
        for end in self.method.ends(self.seen):
            chunk = self.every_head(torch.arange(start, end, device=self.keys.device))
            kept = torch.cat([kept, chunk], dim=2)
            if kept.shape[2] > cap:
                kept_keys = self.keys.gather(2, kept.unsqueeze(3).expand(-1, -1, -1, self.shape.head_dim))
                kept = kept.gather(2, self.choose(queries[:, :, start:end], kept_keys, cap))
            start = end
        if kept.shape[2] < self.stored:
            self.keep(kept)


@used_by(OracleHiddenStatesInSimulatedChunks)
class SimulatingRunner(BlockwiseRunner):
    """Feeds a prompt in one forward."""

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """As MethodRunner.prefill."""
        return MethodRunner.prefill(self, ids)


@bug("chunk-mask-built-with-zero-offset", "https://github.com/lablup/mlxcel/issues/885")
class ChunkMaskBuiltWithZeroOffset(Cake):
    """The mask of a block that continues a cache is built as if the block were the start of the text: it is as wide as
    the block, does not fit the keys, and is thrown away, so that the tokens of the block see later ones.

    From mlxcel, which logged a warning. Shows in the later chunks of a prompt and in later turns of several tokens; in
    a prompt of one chunk the mask fits.
    """


@used_by(ChunkMaskBuiltWithZeroOffset)
class MasklessLayer(CacheLayer):
    """Masks only what begins at 0."""

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Attend without a mask where one of the size of the block does not fit."""
        if 1 < query.shape[2] < keys.shape[2]:
            return scaled_dot_product_attention(query, keys, values, scale=self.scaling, enable_gqa=True)
        return super().attention(query, keys, values, rows)


@bug("resume-uses-first-chunk-pages", "https://github.com/tenstorrent/tt-metal/pull/55630")
class ResumeUsesFirstChunkPages(Chunked):
    """The slots of a continued prompt are cut to the length of its chunk from the front, so that every later chunk is
    written over the first one, and its own slots stay blank.

    From tt-metal, where the list of pages was cut so. Shows when a prompt comes in more than one chunk; what follows
    the prompt is appended as it should be.
    """


@used_by(ResumeUsesFirstChunkPages)
class FirstSlotsLayer(CacheLayer):
    """Writes chunks into the first slots."""

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take slots for new tokens; write into as many slots from the front."""
        if self._held is None or self.k is None or self.v is None:
            super().write(keys, values)
            return
        super().write(torch.zeros_like(keys), torch.zeros_like(values))
        self.k.used[:, :, : keys.shape[2]] = keys
        self.v.used[:, :, : keys.shape[2]] = values


class UnheldRunner(ChunkedRunner):
    """Feeds chunks as if each were a prompt of its own; layers know the total."""

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """As MethodRunner.prefill, in several forwards, behind each of which the layers act."""
        cache = self.build()
        for layer in cache.layers:
            layer.total = ids.shape[1]
        return cache, self.feed_chunks(cache, ids)


@bug("chunk-treated-as-new-prefill", "https://github.com/rajveer43/VeloxQuant-MLX/pull/91", "window=64")
class ChunkTreatedAsNewPrefill(ChunkedStreamingLLM):
    """Every forward of several tokens is taken for a whole prompt: the first tokens of the chunk become sinks, its
    newest ones fill a window of their own, and what is kept of it is put behind what was kept before.

    From VeloxQuant-MLX. Shows when a prompt comes in several chunks and in a second turn: the cache grows by a budget
    each time, and while decoding the first tokens of the text leave before others. In one chunk all is right.
    """

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Feeds chunks."""
        return UnheldRunner(self, loaded, self.chunk)


@used_by(ChunkTreatedAsNewPrefill)
class AnewLayer(StreamingLayer):
    """Cuts every block for itself. total: tokens of the prompt; anchor: the position where the newest block began."""

    total: int | None
    anchor: int

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.total, self.anchor = None, 0

    def compress(self, queries: torch.Tensor) -> None:
        """The first chunk."""
        self.prompt = self.total or self.seen
        self.cut(self.stored)

    def step(self, query: torch.Tensor) -> None:
        """A later chunk is cut; a token pushes out the oldest that is no sink of the newest block."""
        if query.shape[2] > 1:
            self.anchor = self.seen - query.shape[2]
            self.cut(query.shape[2])
        elif self.stored > self.cap:
            positions = self.positions[0, 0].tolist()
            sinks = range(self.anchor, self.anchor + self.method.sink)
            oldest = next(slot for slot, at in enumerate(positions) if at not in sinks)
            left = [slot for slot in range(self.stored) if slot != oldest]
            self.keep(self.every_head(torch.tensor(left, device=self.keys.device)), spare=1)

    @property
    def cap(self) -> int:
        """Sinks and window."""
        return self.method.sink + self.method.width(self.prompt or self.seen)

    def cut(self, count: int) -> None:
        """Of the newest `count` slots, keep sinks and a window."""
        if count > self.cap:
            slots = torch.arange(self.stored, device=self.keys.device)
            first = self.stored - count
            parts = [slots[: first + self.method.sink], slots[self.stored - self.cap + self.method.sink :]]
            self.keep(self.every_head(torch.cat(parts)), spare=1)


@bug("one-shot-block-eviction", "https://github.com/rajveer43/VeloxQuant-MLX/issues/172")
class OneShotBlockEviction(ChunkedH2O):
    """Behind every block of tokens the cache is cut to its budget in one decision, by what the slots received from that
    block alone: what earlier blocks looked at does not count, and what is kept depends on how the prompt was split.

    From VeloxQuant-MLX, where one chunk and many gave different texts at the same budget. Shows when a prompt longer
    than the budget comes in several chunks, and in later turns.
    """

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Feeds chunks."""
        return UnheldRunner(self, loaded, self.chunk)


@used_by(OneShotBlockEviction)
class OneShotLayer(H2OLayer):
    """Scores by the newest block. total: tokens of the prompt."""

    total: int | None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.total = None

    def compress(self, queries: torch.Tensor) -> None:
        """The first chunk."""
        self.prompt = self.total or self.seen
        super().compress(queries)

    def step(self, query: torch.Tensor) -> None:
        """Forget the scores before a block counts; then evict."""
        if query.shape[2] > 1 and self.scores is not None:
            self.scores = torch.zeros_like(self.scores)
        super().step(query)


@bug("ring-smaller-than-chunk-plus-window", "https://github.com/pytorch/executorch/pull/20346")
class RingSmallerThanChunkPlusWindow(ChunkedMix):
    """A sliding layer stores a chunk in a ring of as many slots as the window or the chunk has, whichever is more,
    before it attends: the chunk overwrites the tokens before it, which the window of its early tokens still reaches.

    From executorch. Shows in the sliding layers, at the start of every chunk but the first; layers that see everything,
    prompts of one chunk and decoding are right.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that makes keys and values in a ring, or one that reads another's."""
        kind = OverwritingLayer if self.layout.makes(index) else ReadLayer
        return kind(shape, index, self)


class OverwritingLayer(MadeLayer):
    """Overwrites what a chunk leaves no room for."""

    def attend(self, query: torch.Tensor, scaling: float | None = None) -> torch.Tensor:
        """Of an unfinished prompt, keep what the ring holds; then attend."""
        layout = self.method.layout
        slots = max(layout.window, query.shape[2])
        if self._held is not None and layout.slides(self.index) and self.stored > slots:
            self.keep(self.every_head(torch.arange(self.stored - slots, self.stored)))
        return super().attend(query, scaling)
