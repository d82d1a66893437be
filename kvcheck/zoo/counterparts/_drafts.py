"""Speculation: every later forward also carries a guess, which is rolled back before the next one."""

from __future__ import annotations

from typing import Any

import torch

from kvcheck.cache.method_runner import MethodRunner


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
