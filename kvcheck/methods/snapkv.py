"""SnapKV: keep what the last queries of the prompt look at. arXiv 2404.14469, FasterDecoding/SnapKV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks, scoring
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.voting import WindowVote


@dataclass(frozen=True)
class SnapKV(WindowVote):
    """After the prompt of p tokens, keep the C tokens per layer and kv head that its last queries attend to most.

    budget: C, window included: a share of the prompt (0.5; C = floor(0.5 p), at least window + 1) or a number of tokens
    (1024). Prompts of at most C tokens are kept whole. window: w, queries that vote, and newest tokens, which stay.
    kernel, pooling ("avg" or "max"): smoothing of the votes along the prompt.

    Votes: A = softmax(Q_w Kᵀ·scaling) over all p keys in float32, causal in the last w x w block; summed over the w
    queries, mean over the query heads of a kv head, pooled, top C - w of the first p - w columns. Decoded tokens are
    appended and never leave. Keys stay post-RoPE at their original positions; kept indices ascend.

    Bytes: 2·L·B·G·(min(p, C) + decoded)·d·2. Errors: SpecError for values out of range.
    Differences from the official code: G kv heads are stored and scored by the group's mean (official: all H query
    heads, group times the memory); the budget may be a share; kept tokens are in order; ties go to the older token.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps the tokens that the last queries of the prompt attend to",
        stage=Stage.COMPRESSION,
        paper="arXiv 2404.14469",
        formula="2·L·B·G·(min(p, C) + decoded)·d·2",
        knob="budget",
        needs=("queries",),
        variant="one choice per kv head (mean over its query heads); official chooses and stores per query head",
        lossless=Lossless.at("budget=1.0"),
    )

    kernel: int = 5
    pooling: str = "avg"

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "kernel", self.kernel, 1, 5)
        checks.one_of(self.name(), "pooling", self.pooling, ("avg", "max"))
        checks.odd(self.name(), self.kernel)

    def votes(self, layer: CacheLayer, queries: torch.Tensor) -> torch.Tensor | None:
        """The same, pooled."""
        found = super().votes(layer, queries)
        return None if found is None else scoring.pool(found, self.kernel, self.pooling)

    def prefix(self, layers: int, index: int, prompt: int) -> int:
        """Slots for tokens before the window in layer `index`, for a prompt longer than C.

        `slots` does not go by it, so that a slip here cannot hide itself.
        """
        return self.cap(prompt) - self.window

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that compresses once, after the prompt."""
        return SnapLayer(shape, index, self)


class SnapLayer(CacheLayer):
    """Chooses by the observation window."""

    method: SnapKV

    def compress(self, queries: torch.Tensor) -> None:
        """Keep the top of the prefix and the window."""
        method, prompt = self.method, self.stored
        votes = method.votes(self, queries)
        if votes is None:
            return
        chosen = scoring.top(votes, method.prefix(self.shape.layers, self.index, prompt))
        window = self.every_head(torch.arange(prompt - method.window, prompt, device=chosen.device))
        self.keep(torch.cat([chosen, window], dim=2))


METHOD = SnapKV
