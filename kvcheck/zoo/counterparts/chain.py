"""Two evictions one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks, scoring
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Method, MethodInfo
from kvcheck.cache.shape import ModelShape
from kvcheck.zoo.base import used_by


@dataclass(frozen=True)
class Chain(Method):
    """After the prompt, remove tokens by the votes of its last queries, then, of the rest, those with large keys.

    votes: the share of the prompt that the first stage removes, by the attention of the last `window` queries. norms:
    the share of what is left that the second stage removes, the keys of largest norm first. The last `window` tokens
    stay in both. What is decoded is kept.

    Bytes: 2·L·B·G·(kept + decoded)·d·2, with kept = p - removed(p). Errors: SpecError for values out of range.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="two evictions one after the other, by attention and by the norm of keys",
        stage="compression",
        formula="2·L·B·G·(p - removed(p) + decoded)·d·2",
        needs=("queries",),
        variant="the shares of the two stages compound",
        exempt={"what_every_query_asks_for_is_found": "the second stage drops keys of large norm, asked for or not"},
    )

    votes: float = 0.5
    norms: float = 0.5
    window: int = 16

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.share(self.name(), "votes", self.votes, 0, 1, 0.5)
        checks.share(self.name(), "norms", self.norms, 0, 1, 0.5)
        checks.whole(self.name(), "window", self.window, 1, 16)

    def left(self, share: float, tokens: int) -> int:
        """Tokens that a stage leaves of so many."""
        return max(min(tokens, self.window), checks.tokens(1 - share, tokens, least=0))

    def removed(self, prompt: int) -> int:
        """Tokens per layer and kv head that both stages together are to remove from a prompt."""
        return prompt - self.left(self.norms, self.left(self.votes, prompt))

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """What is not removed, and everything decoded."""
        return (prompt - self.removed(prompt) + decoded,) * shape.layers

    def protected(self, prompt: int) -> frozenset[int]:
        """The window."""
        return frozenset(range(max(0, prompt - self.window), prompt))


@used_by(Chain)
class ChainLayer(CacheLayer):
    """Evicts in two stages."""

    method: Chain

    def compress(self, queries: torch.Tensor) -> None:
        """By votes, then by norms."""
        method = self.method
        window = queries[:, :, -method.window :]
        self._stage(scoring.window_scores(window, self.keys, self.scaling), method.left(method.votes, self.stored))
        self._stage(-self.keys.float().norm(dim=3), method.left(method.norms, self.stored))

    def _stage(self, scores: torch.Tensor, count: int) -> None:
        """Keep the newest tokens and, of the others, those with the highest scores (B, G, slots): `count` in all."""
        if count < self.stored:
            scores[:, :, -self.method.window :] = float("inf")
            self.keep(scoring.top(scores, count))
