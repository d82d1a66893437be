"""How much an engine differs from itself: the same prompts twice, each alone and all together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

from kvcheck.backends.engines.base import Prompt, Reply

PROMPTS, LENGTH, TOKENS = 6, 512, 16
"""Prompts that are asked, their length, and the length of the answers."""
LEVEL = 0.05


@dataclass(frozen=True)
class Noise:
    """log_prob: the largest difference of a log-probability, up to the first token that differs. differing: answers of
    `asked` with another token."""

    log_prob: float
    differing: int
    asked: int

    def __str__(self) -> str:
        return (
            f"differs from itself by {self.log_prob:.1e} in the log-probability of a token, and in "
            f"{self.differing} of {self.asked} answers"
        )

    @property
    def least(self) -> float:
        """The share of answers that surely differ, in points."""
        from kvcheck.judging.stats.binary import clopper_pearson

        return 100 * clopper_pearson(self.differing, self.asked, LEVEL)[0]


def measure(ask: Callable[[Sequence[Prompt]], list[Reply]], prompts: Sequence[Prompt]) -> Noise:
    """Ask each prompt alone, again, and all together."""
    once, again = ([ask([prompt])[0] for prompt in prompts] for _ in range(2))
    together = ask(prompts)
    pairs = [*zip(once, again, strict=True), *zip(once, together, strict=True)]
    return Noise(
        max(apart(one, other) for one, other in pairs),
        sum(one.tokens != other.tokens for one, other in pairs),
        len(pairs),
    )


def apart(one: Reply, other: Reply) -> float:
    """The largest difference of log-probabilities of two answers, up to the first token that differs.

    There, what one of them finds likelier than all others together is less than that to the other one.
    """
    largest = 0.0
    for mine, theirs, here, there in zip(one.tokens, other.tokens, one.log_probs, other.log_probs, strict=False):
        largest = max(largest, abs(here - there))
        if mine != theirs:
            return max(largest, here + log(2), there + log(2))
    return largest
