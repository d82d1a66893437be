"""What methods share that choose from the prompt by the votes of its last queries, its window, which stays."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvcheck.cache import checks, scoring
from kvcheck.cache.layer import CacheLayer
from kvcheck.cache.method import Method
from kvcheck.cache.shape import ModelShape


@dataclass(frozen=True)
class WindowVote(Method):
    """Base of methods that keep C slots per layer and kv head of the prompt, its last w tokens among them.

    budget: C, window included: a share of the prompt or a number of tokens. Prompts of at most C tokens are kept whole.
    window: w. Decoded tokens are appended and never leave. Errors: SpecError for values out of range.
    """

    budget: float | int = 0.5
    window: int = 32

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.budget(self.name(), "budget", self.budget)
        checks.whole(self.name(), "window", self.window, 1, 32)
        checks.room(self.name(), self.budget, self.window)

    def cap(self, prompt: int) -> int:
        """C: slots per layer and kv head for a prompt of this length."""
        return checks.tokens(self.budget, prompt, least=self.window + 1)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...] | None:
        """min(p, C) and everything decoded."""
        return (min(prompt, self.cap(prompt)) + decoded,) * shape.layers

    def protected(self, prompt: int) -> frozenset[int]:
        """The window, or all of a short prompt."""
        first = 0 if prompt <= self.cap(prompt) else prompt - self.window
        return frozenset(range(first, prompt))

    def votes(self, layer: CacheLayer, queries: torch.Tensor) -> torch.Tensor | None:
        """What the window attends to of the p - w tokens before it, (B, G, p - w); None for a prompt that is kept.

        queries: the prompt's, (B, H, p, d).
        """
        if layer.stored <= self.cap(layer.stored):
            return None
        found = scoring.window_scores(queries[:, :, -self.window :], layer.keys, layer.scaling)
        return found[:, :, : layer.stored - self.window]
