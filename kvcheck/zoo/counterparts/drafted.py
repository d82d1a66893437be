"""Speculative decoding: every later forward also carries guesses, which are rolled back before the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch

from kvcheck.cache import checks
from kvcheck.cache.growable import GrowableBuffer, _spare
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.methods.streaming_llm import StreamingLayer, StreamingLLM
from kvcheck.zoo.base import used_by


class DraftRunner(MethodRunner):
    """Feeds `draft` guessed tokens behind what it is told to feed, and takes them back out of the cache.

    The guess is the last token again; whether it is right does not matter, since the caller says what comes next.
    """

    def feed(self, cache: Any, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """As MethodRunner.feed. The prompt comes without a guess."""
        draft: int = self.method.draft  # type: ignore[attr-defined]
        if not draft or cache.layers[0].prompt is None:
            return super().feed(cache, ids, keep)
        guess = ids[:, -1:].expand(-1, draft)
        logits = super().feed(cache, torch.cat([ids, guess], dim=1), keep + draft)[:, :keep]
        for layer in cache.layers:
            layer.crop(-draft)
        return logits


def length_after(seen: int, argument: int) -> int:
    """Tokens left by crop(argument): that many, or for a negative argument so many fewer; never less than none."""
    return min(seen, argument) if argument >= 0 else max(0, seen + argument)


@dataclass(frozen=True)
class Drafted(StreamingLLM):
    """StreamingLLM whose every later forward carries guessed tokens, which are rolled back when it is over.

    drafts: tokens that are guessed behind the fed ones: the newest token again and again, which is seldom right, so all
    of them are rejected. The answers, slots and bytes are those of StreamingLLM: a guess stands behind the tokens that
    are fed, which do not see it, and nothing is evicted before the guesses have left.
    """

    info: ClassVar[MethodInfo] = replace(
        StreamingLLM.info,
        summary="keeps the first tokens and a sliding window, behind speculative decoding",
        variant="original positions; every forward after the prompt feeds guessed tokens and rolls them back",
    )

    drafts: int = 3

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "drafts", self.drafts, 0, 3)


class ZeroBuffer(GrowableBuffer):
    """A GrowableBuffer whose slots hold zeros until they are written."""

    __slots__ = ()

    def append(self, block: torch.Tensor) -> None:
        """Write a block behind the used slots; what is allocated ahead is cleared."""
        capacity = self.tensor.shape[2]
        super().append(block)
        if self.tensor.shape[2] > capacity:
            self.tensor[:, :, self.length :] = 0

    def shorten(self, count: int) -> None:
        """Forget the newest slots. Room that is more than an append leaves ahead is given back."""
        self.length -= count
        if self.tensor.shape[2] - self.length > _spare(self.length):
            self.drop(0)

    def select(self, rows: Sequence[int] | torch.Tensor) -> ZeroBuffer:
        """A new buffer with copies of these rows of the batch."""
        return ZeroBuffer(super().select(rows).tensor)


@used_by(Drafted)
class DraftedLayer(StreamingLayer):
    """Evicts once the guesses have been rolled back. drafted: guesses in the forward that is under way."""

    drafted: int

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.drafted = 0

    def compress(self, queries: torch.Tensor) -> None:
        """Evict after the prompt."""
        self.k, self.v = ZeroBuffer(self.keys), ZeroBuffer(self.values)
        super().compress(queries)

    def step(self, query: torch.Tensor) -> None:
        """Evict, unless guesses are still in."""
        if not self.drafted:
            super().step(query)

    def slide(self, first: int, count: int) -> None:
        """By a copy: a cursor that moves back counts from the beginning of the buffer."""
        self.without(first, count)

    def rollback(self, count: int) -> int:
        """Forget the newest `count` tokens; then evict. Returns how many were forgotten."""
        for buffer in self._buffers():
            cast(ZeroBuffer, buffer).shorten(count)
        self.seen -= count
        self.drafted = 0
        self.evict()
        return count


@used_by(Drafted)
class DraftedRunner(MethodRunner):
    """Speculative decoding whose guesses are all rejected."""

    method: Drafted

    def feed(self, cache: Any, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """Feed ids and guesses, take the logits of the ids, roll the guesses back."""
        drafts = self.method.drafts if cache.layers[0].prompt is not None else 0
        for layer in cache.layers:
            layer.drafted = drafts
        guesses = ids[:, -1:].expand(-1, drafts)
        logits = super().feed(cache, torch.cat([ids, guesses], dim=1), keep + drafts)[:, :keep]
        if drafts:
            self.reject(cache, drafts)
        return logits

    def reject(self, cache: Any, count: int) -> None:
        """Roll all layers back."""
        for layer in cache.layers:
            layer.rollback(count)
