"""Bugs of masks: who sees what."""

from __future__ import annotations

import torch

from kvcheck.cache import scoring
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.methods.fp16 import Fp16
from kvcheck.methods.streaming_llm import StreamingLayer, StreamingLLM
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.chunked import Blockwise, BlockwiseLayer
from kvcheck.zoo.counterparts.padded import PaddedLayer, PaddedSnapKV
from kvcheck.zoo.counterparts.pooled import Pooled, PooledLayer


@bug("scoring-ignores-padding-mask", "https://github.com/FasterDecoding/SnapKV/issues/3")
class ScoringIgnoresPaddingMask(PaddedSnapKV):
    """The votes are counted under a causal mask of their own, and the mask that hides the pads is not looked at: a pad
    gets votes like any token, and those with enough of them take the slots of real tokens.

    From SnapKV's first code, which overwrote the attention mask that it was given; what that does to padded rows was
    concluded from the code, not reported. Shows on prompts that are padded and longer than the budget.
    """


@used_by(ScoringIgnoresPaddingMask)
class VotingPadsLayer(PaddedLayer):
    """Chooses among pads and tokens."""

    def compress(self, queries: torch.Tensor) -> None:
        """Keep the window and the top of all that is before it."""
        method, pads = self.method, self.pads
        cap = method.cap(self.seen - pads)
        if self.seen - pads <= cap:
            super().compress(queries)
            return
        prefix = self.stored - method.window
        scores = scoring.window_scores(queries[:, :, -method.window :], self.keys, self.scaling)
        scores = scoring.pool(scores[:, :, :prefix], method.kernel, method.pooling)
        window = self.every_head(torch.arange(prefix, self.stored, device=scores.device))
        self.keep(torch.cat([scoring.top(scores, cap - method.window), window], dim=2))
        self.pads = 0
        self.seen -= pads
        self.prompt = self._kept_at = self.seen
        if self.kept is not None:
            self.kept = self.kept - pads


@bug("causal-shortcut-after-prefill-eviction", "https://github.com/rajveer43/VeloxQuant-MLX/issues/370", "chunk=8192")
class CausalShortcutAfterPrefillEviction(Blockwise):
    """The prompt is evicted while it is taken in, so that its own forward attends to what is left: fewer keys than
    queries. The causal shortcut of the kernel takes these keys for the newest tokens: of the last rows, as many as
    there are keys, each sees one key more than the row before, whatever tokens they are, and the rows before see
    nothing.

    From VeloxQuant-MLX, where several caches returned the evicted keys to the forward of the prompt. Shows when the
    prompt is longer than the budget; up to the budget both are the same.
    """


@used_by(CausalShortcutAfterPrefillEviction)
class EvictsFirstLayer(BlockwiseLayer):
    """Evicts before the prompt has attended."""

    def attend(self, query: torch.Tensor, scaling: float | None = None) -> torch.Tensor:
        """Evict tokens of the prompt; then attend."""
        if self.prompt is None or (self.total is not None and self.seen <= self.total):
            self.cut(query)
        return super().attend(query, scaling)

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """The shortcut where keys are missing."""
        missing = query.shape[2] - keys.shape[2]
        if missing <= 0:
            return super().attention(query, keys, values, rows)
        out = torch.zeros_like(query)
        out[:, :, missing:] = super().attention(query[:, :, missing:], keys, values, rows)
        return out


@bug("window-cache-rolled-one-step-early", "https://github.com/huggingface/transformers/issues/37574", "window=1044")
class WindowCacheRolledOneStepEarly(StreamingLLM):
    """The window is rolled when the new token fills it, not when it no longer fits: the oldest token behind the sinks
    is dropped though there was room, and the slot before the new token stays blank.

    From the sliding-window cache of transformers. Shows from the token on that makes the number of slots equal to the
    cap, if it comes after the prompt; the blank slot stays until it has wandered out of the window.
    """


@used_by(WindowCacheRolledOneStepEarly)
class EarlyRollLayer(StreamingLayer):
    """Rolls its window once too often."""

    @property
    def cap(self) -> int:
        """Sinks and window."""
        return self.method.sink + self.method.width(self.prompt or self.seen)

    def attend(self, query: torch.Tensor, scaling: float | None = None) -> torch.Tensor:
        """Roll when a token has filled the window; then attend."""
        if self.prompt is not None and query.shape[2] == 1 and self.stored == self.cap:
            self.roll(self.cap - 2)
        return super().attend(query, scaling)

    def step(self, query: torch.Tensor) -> None:
        """Evict; if a block has filled the window on its way, roll what is older than the token that did."""
        surplus, count = self.stored - self.cap, query.shape[2]
        self.evict()
        if count > 1 and 0 <= surplus < count:
            self.roll(self.cap - 2 - surplus)

    def roll(self, blank: int) -> None:
        """Move the slots behind the sinks by one, up to the slot `blank`, which nothing is written to."""
        sink = self.method.sink
        if blank >= sink:
            for buffer in self._buffers():
                older = buffer.used[:, :, sink : blank + 1]
                older[:, :, :-1] = older[:, :, 1:].clone()
                older[:, :, -1] = 0


@bug("key-loop-starts-at-query-offset", "https://github.com/openai/gpt-oss/pull/196")
class KeyLoopStartsAtQueryOffset(Fp16):
    """A block of tokens that continues a cache loops over keys from the position of its own first token on: nothing
    that was there before is seen by it.

    From an attention kernel of gpt-oss. Shows in a second turn and in the later chunks of a prompt; the first block
    begins at 0, and single tokens take another path.
    """


@used_by(KeyLoopStartsAtQueryOffset)
class OwnBlockLayer(CacheLayer):
    """Blocks see themselves only."""

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Leave out what is before the block."""
        count = query.shape[2]
        if count > 1:
            keys, values = keys[:, :, -count:], values[:, :, -count:]
        return super().attention(query, keys, values, rows)


@bug("compressed-block-offset-added-twice", "https://github.com/raullenchai/Rapid-MLX/pull/3545")
class CompressedBlockOffsetAddedTwice(Pooled):
    """How many entries a token sees is reckoned from its position plus the position of its block's first token: the
    offset counts twice, and entries are visible that hold later tokens of the same forward.

    From Rapid-MLX's copy of a model with compressed attention. Shows in a later forward of several tokens, for all but
    the last of them; a single token sees all there is anyway.
    """


@used_by(CompressedBlockOffsetAddedTwice)
class EarlyEntriesLayer(PooledLayer):
    """Adds the offset twice."""

    def visible(self, row: torch.Tensor) -> torch.Tensor:
        """Entries up to a position that is too large."""
        return (row[0] + row + 1) // self.method.block
