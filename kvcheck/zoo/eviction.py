"""Bugs of eviction: what leaves the cache, and what should not have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from kvcheck.cache import scoring
from kvcheck.methods.h2o import H2O, H2OLayer
from kvcheck.methods.streaming_llm import StreamingLayer, StreamingLLM
from kvcheck.methods.tova import TOVA, TOVALayer
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.drafted import Drafted, DraftedLayer


@bug("nkept-floors-to-zero", "https://github.com/NVIDIA/kvpress/pull/264")
class NkeptFloorsToZero(TOVA):
    """The number of slots is the share of the prompt rounded down, without a least of one: for a prompt of one token at
    a share of one half it is zero, the selection of the best zero slots is empty, and so is the cache.

    From kvpress, whose presses computed the tokens to keep so. Shows where the prompt times the share is below one:
    what follows is answered without any context, and no exception says so.
    """


@used_by(NkeptFloorsToZero)
class FlooringLayer(TOVALayer):
    """Rounds its budget down, to zero too."""

    def evict(self, queries: torch.Tensor) -> None:
        """Keep the best slots, if there are to be any."""
        budget = self.method.budget
        cap = budget if isinstance(budget, int) else math.floor(budget * (self.prompt or self.seen) + 1e-6)
        if cap:
            super().evict(queries)
        else:
            self.keep(self.every_head(torch.arange(0)), spare=1)


@bug("attention-sinks-evictable", "https://github.com/awslabs/keys_values/issues/140")
class AttentionSinksEvictable(StreamingLLM):
    """No slots are reserved for the first tokens: the budget of sinks and window together goes to the newest tokens, so
    the sinks leave as soon as anything does.

    From keys_values, where storage and attention were exact and trained models still fell silent. Shows when the prompt
    exceeds the budget; a model with random weights does not mind.
    """


@used_by(AttentionSinksEvictable)
class SinklessLayer(StreamingLayer):
    """Keeps the newest slots only."""

    def evict(self) -> None:
        """Drop the oldest slots."""
        cap = self.method.sink + self.method.width(self.prompt or self.seen)
        if self.stored > cap:
            newest = torch.arange(self.stored - cap, self.stored, device=self.keys.device)
            self.keep(self.every_head(newest), spare=1)


@bug("newcomer-score-freeze", "https://github.com/rajveer43/VeloxQuant-MLX/pull/141")
@dataclass(frozen=True)
class NewcomerScoreFreeze(H2O):
    """A token that is decoded starts with a score of zero, and the slot with the smallest score of all leaves, be it
    the newest: in a full cache every newcomer is its own victim, and what the prompt left in the cache stays for good.

    From VeloxQuant-MLX, whose H2O knew neither a recent window nor a period of grace. Shows while decoding with a full
    budget: short answers are right, long ones forget what they have just said.
    """


@used_by(NewcomerScoreFreeze)
class FrozenLayer(H2OLayer):
    """After the prompt, ranks all slots by score alone; new ones have none."""

    def step(self, query: torch.Tensor) -> None:
        """Add what the older slots received, append zeros for the new ones, keep the highest scores."""
        received, self._received = torch.cat(self._received), []
        if self.scores is None:
            return
        past = self.scores.shape[2]
        self.scores = pad(self.scores + received[:, :, :past], (0, query.shape[2]))
        cap = self.method.cap(self.prompt or self.seen)
        if self.stored > cap:
            index = scoring.top(self.scores, cap)
            self.scores = self.scores.gather(2, index)
            self.keep(index, spare=1)


@bug("trim-clamped-by-logical-length", "https://github.com/rajveer43/VeloxQuant-MLX/pull/371")
class TrimClampedByLogicalLength(Drafted):
    """A rollback computes the new end of the rows from the number of tokens seen, which after an eviction is larger
    than the number of rows: the cursor ends up behind the last row that was written, and the rejected guesses and the
    blank rows behind them count as tokens.

    From VeloxQuant-MLX, whose evicting caches report the absolute position as their length. Shows at a rollback after
    an eviction; before the first eviction both numbers are the same.
    """


@used_by(TrimClampedByLogicalLength)
class RunawayLayer(DraftedLayer):
    """Places its cursor by the tokens seen."""

    def rollback(self, count: int) -> int:
        """Forget the newest tokens of the text, not the newest rows."""
        self.seen -= count
        for buffer in self._buffers():
            buffer.length = min(self.seen, buffer.tensor.shape[2])
        self.drafted = 0
        rows = self._buffers()[0].length
        known = self.positions
        if rows > known.shape[2]:  # rows that stand for nothing are taken for the newest token
            self.kept = pad(known, (0, rows - known.shape[2]), value=self.seen - 1)
            self._kept_at = self.seen
        self.evict()
        return count


@bug("multi-token-append-never-evicts", "https://github.com/ml-explore/mlx-lm/issues/1914")
class MultiTokenAppendNeverEvicts(StreamingLLM):
    """How much is to leave the window is reckoned for one new token, whatever the block: slots before it, plus one,
    minus the cap. Below the cap that is nothing, at the cap it is one, and the rest of the block stays on top.

    From mlx-lm's rotating cache. Shows after a later forward of several tokens (a second turn, the check of guesses):
    the cache is larger than it declares until a single token is decoded, which trims it.
    """


@used_by(MultiTokenAppendNeverEvicts)
class OneByOneLayer(StreamingLayer):
    """Trims for one token."""

    def step(self, query: torch.Tensor) -> None:
        """Drop the oldest behind the sinks: as many as one new token makes too many."""
        sink, width = self.method.sink, self.method.width(self.prompt or self.seen)
        surplus = self.stored - query.shape[2] + 1 - (sink + width)
        if surplus > 0:
            slots = torch.arange(self.stored, device=self.keys.device)
            self.keep(self.every_head(torch.cat([slots[:sink], slots[sink + surplus :]])), spare=1)
