"""SnapKV: keep what the last queries of the prompt look at. arXiv 2404.14469, FasterDecoding/SnapKV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks, scoring
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, Method, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import SpecError
from kvcheck.core.front import option


@dataclass(frozen=True)
class SnapKV(Method):
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

    budget: float | int = 0.5
    window: int = 32
    kernel: int = 5
    pooling: str = "avg"

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        name = self.name()
        checks.budget(name, "budget", self.budget)
        checks.whole(name, "window", self.window, 1, 32)
        checks.whole(name, "kernel", self.kernel, 1, 5)
        checks.one_of(name, "pooling", self.pooling, ("avg", "max"))
        if self.kernel % 2 == 0:
            raise SpecError(
                f"{name}: kernel={self.kernel} is even; pooling around a token needs an odd one",
                f"type {option('methods')}={name}:kernel={self.kernel + 1}",
            )
        if isinstance(self.budget, int) and self.window >= self.budget:
            raise SpecError(
                f"{name}: window={self.window} leaves nothing to choose in a budget of {self.budget} tokens",
                f"type {option('methods')}={name}:budget={self.budget},window={max(1, self.budget // 2)}",
            )

    def cap(self, prompt: int) -> int:
        """C: slots per layer and kv head for a prompt of this length."""
        return checks.tokens(self.budget, prompt, least=self.window + 1)

    def prefix(self, layers: int, index: int, prompt: int) -> int:
        """Slots for tokens before the window in layer `index`, for a prompt longer than C."""
        return self.cap(prompt) - self.window

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that compresses once, after the prompt."""
        return SnapLayer(shape, index, self)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """min(p, C) and everything decoded. Not by `prefix`, so that a slip there cannot hide itself."""
        return (min(prompt, self.cap(prompt)) + decoded,) * shape.layers

    def protected(self, prompt: int) -> frozenset[int]:
        """The window, or all of a short prompt."""
        first = 0 if prompt <= self.cap(prompt) else prompt - self.window
        return frozenset(range(first, prompt))


class SnapLayer(CacheLayer):
    """Chooses by the observation window."""

    method: SnapKV

    def compress(self, queries: torch.Tensor) -> None:
        """Keep the top of the prefix and the window."""
        method, prompt = self.method, self.stored
        if prompt <= method.cap(prompt):
            return
        prefix = prompt - method.window
        scores = scoring.window_scores(queries[:, :, -method.window :], self.keys, self.scaling)
        scores = scoring.pool(scores[:, :, :prefix], method.kernel, method.pooling)
        chosen = scoring.top(scores, method.prefix(self.shape.layers, self.index, prompt))
        window = self.every_head(torch.arange(prefix, prompt, device=chosen.device))
        self.keep(torch.cat([chosen, window], dim=2))


METHOD = SnapKV
