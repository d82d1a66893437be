"""Bugs of long generation: right at first, wrong when the answer is long or the text goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.methods.h2o import H2O, H2OLayer
from kvcheck.methods.streaming_llm import StreamingLayer, StreamingLLM
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.drafted import Drafted, DraftedRunner
from kvcheck.zoo.counterparts.regimes import RegimeRunner, Regimes


@bug("evict-at-prefill-only", "https://github.com/Zefan-Cai/KVCache-Factory/issues/20")
class EvictAtPrefillOnly(H2O):
    """The cache is cut when a forward is the whole text so far, which only the prompt's is: all that comes later is
    appended and stays, and the cap is none.

    From KVCache-Factory, whose authors confirmed it. Shows while decoding and in later turns: the memory grows by every
    token, and the answers are, if anything, better than they should be.
    """


@used_by(EvictAtPrefillOnly)
class OnceLayer(H2OLayer):
    """Evicts after the prompt only."""

    def step(self, query: torch.Tensor) -> None:
        """Nothing leaves; scores are of no use any more."""
        self._received = []


@bug("rope-regime-switch-keeps-old-keys", "https://github.com/huggingface/transformers/pull/33129")
class RopeRegimeSwitchKeepsOldKeys(Regimes):
    """When the text outgrows the original context, new keys and all queries turn by the factors for long texts, and the
    keys that are cached stay as the factors for short ones left them.

    From transformers, with Phi-3's two sets of factors. Shows when a text crosses the length after its prompt; a prompt
    that is beyond it is right, and so is a text that stays below.
    """


@used_by(RopeRegimeSwitchKeepsOldKeys)
class UnawareRunner(RegimeRunner):
    """Does not notice that the regime has changed."""

    def crossing(self, cache: KVCache, text: torch.Tensor, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Feed the newest ids as ever."""
        return MethodRunner.feed(self, cache, ids, keep)


@bug("rollback-silently-refused", "https://github.com/ml-explore/mlx-swift-lm/issues/424")
class RollbackSilentlyRefused(Drafted):
    """A rollback is refused for all layers once the window of one has dropped a token, and says so by returning zero,
    which nobody reads: the rejected guesses stay in the text, are seen by what follows, and push its positions on.

    From mlx-swift-lm's speculative decoding. Shows when guesses are rejected after the window has begun to slide; up to
    then every rollback is carried out.
    """


@used_by(RollbackSilentlyRefused)
class DeafRunner(DraftedRunner):
    """Takes every rollback for done."""

    def reject(self, cache: Any, count: int) -> None:
        """Try to roll back."""
        self.rollback(cache, count)

    def rollback(self, cache: Any, count: int) -> int:
        """Roll all layers back, or none. Returns how many tokens were forgotten."""
        if any(layer.kept is not None for layer in cache.layers):
            for layer in cache.layers:
                layer.drafted = 0
                layer.evict()
            return 0
        return min(layer.rollback(count) for layer in cache.layers)


LIMIT = 8192


@dataclass
class Ledger:
    """Tokens that the first layer has announced, for the others to evict by. More than LIMIT at a time are refused."""

    announced: list[int] = field(default_factory=list)

    def announce(self, tokens: int) -> None:
        """Note the tokens of a forward. Raises RuntimeError where too many are under way."""
        self.announced.append(tokens)
        if sum(self.announced) > LIMIT:
            raise RuntimeError(
                f"{sum(self.announced)} tokens are announced and not yet evicted by, {LIMIT} are allowed"
            )


@bug("shared-budget-never-released", "https://github.com/rajveer43/VeloxQuant-MLX/issues/80")
class SharedBudgetNeverReleased(H2O):
    """The layers of a model share a ledger of the tokens that are being taken in. The first layer announces those of
    every forward, no layer strikes them out when it is done, and the sum of a lifetime is held against the limit for
    tokens under way.

    From VeloxQuant-MLX's coordinator between layers. Shows as an error after 8,192 tokens, prompts and answers of all
    samples together; up to then the ledger grows and nothing is wrong.
    """

    @cached_property
    def ledger(self) -> Ledger:
        """One for all caches of the method."""
        return Ledger()


@used_by(SharedBudgetNeverReleased)
class AnnouncingLayer(H2OLayer):
    """Announces what it takes in, if it is the first."""

    method: SharedBudgetNeverReleased

    def compress(self, queries: torch.Tensor) -> None:
        """Announce the prompt, then evict."""
        self.announce(self.seen)
        super().compress(queries)

    def step(self, query: torch.Tensor) -> None:
        """Announce new tokens, then evict."""
        self.announce(query.shape[2])
        super().step(query)

    def announce(self, tokens: int) -> None:
        """Write into the ledger."""
        if self.index == 0:
            self.method.ledger.announce(tokens)


@bug("window-cache-only-right-for-first-prompt", "https://github.com/ml-explore/mlx-examples/issues/1000")
class WindowCacheOnlyRightForFirstPrompt(StreamingLLM):
    """The window is a ring, in which a decoded token takes the place of the oldest one. A block of tokens is appended
    behind the ring as it lies, and what is too much is cut off at its front, where after some decoding the newest
    tokens are: they leave, and the oldest stay.

    From the rotating cache of mlx-examples, written for one prompt and the answer to it; how the order went wrong was
    read from the code. Shows in a second turn, when the window was full and tokens have been decoded into it.
    """


@used_by(WindowCacheOnlyRightForFirstPrompt)
class RingLayer(StreamingLayer):
    """ring: the positions of the tokens in the window, as they lie in the ring; next: where the next one goes."""

    ring: list[int]
    next: int

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.ring, self.next = [], 0

    def compress(self, queries: torch.Tensor) -> None:
        """The prompt lies in the ring in its order."""
        super().compress(queries)
        self.ring = self.positions[0, 0, self.method.sink :].tolist()

    def step(self, query: torch.Tensor) -> None:
        """A token goes where the oldest was, a block behind the end; keep what is in the ring then."""
        sink, width = self.method.sink, self.method.width(self.prompt or self.seen)
        new = [at for at in range(self.seen - query.shape[2], self.seen) if at >= sink]
        if len(new) == 1 and len(self.ring) == width:
            self.ring[self.next] = new[0]
            self.next = (self.next + 1) % width
        else:
            self.ring, self.next = (self.ring + new)[-width:], 0
        inside = set(self.ring)
        left = [slot for slot, at in enumerate(self.positions[0, 0].tolist()) if at < sink or at in inside]
        if len(left) < self.stored:
            self.keep(self.every_head(torch.tensor(left, device=self.keys.device)), spare=1)
