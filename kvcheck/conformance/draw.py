"""What Hypothesis draws: the shape of one trial. It shrinks towards few rows, short texts and plain Llama."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from hypothesis import strategies as st

BLOCKS = (8, 16, 32, 64, 128)
"""Sizes around whose multiples windows, groups, pages and chunks have their borders."""
LONGEST = 300


@dataclass(frozen=True)
class Draw:
    """One trial. prompt, block: tokens of the prompt and of a follow-up fed in one forward; steps: tokens fed one by
    one; cut: per mille of the prompt at which it is cut in two; rows: of the batch."""

    architecture: str = "llama"
    seed: int = 0
    rows: int = 1
    prompt: int = 1
    block: int = 1
    steps: int = 1
    cut: int = 0

    def text(self) -> str:
        """As keyword arguments, those that are not at their default."""
        changed = {each.name: getattr(self, each.name) for each in fields(self)}
        return ", ".join(f"{name}={value!r}" for name, value in changed.items() if value != _DEFAULTS[name])


_DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields(Draw)}


def lengths(longest: int = LONGEST) -> st.SearchStrategy[int]:
    """Lengths from 1 up: the shortest, short ones, borders of blocks, any, and long ones."""
    borders = {size * times + beside for size in BLOCKS for times in (1, 2, 4) for beside in (-1, 0, 1)}
    near = st.sampled_from(sorted(each for each in borders if 1 <= each <= longest))
    short, long = st.integers(1, min(40, longest)), st.integers(max(1, longest // 2), longest)
    return st.one_of(st.integers(1, 3), short, near, st.integers(1, longest), long)


def draws(architectures: Sequence[str], longest: int = LONGEST, most_steps: int = 12) -> st.SearchStrategy[Draw]:
    """Trials on these small models."""
    return st.builds(
        Draw,
        architecture=st.sampled_from(list(architectures)),
        seed=st.integers(0, 99),
        rows=st.integers(1, 3),
        prompt=lengths(longest),
        block=st.one_of(st.integers(1, 9), lengths(70)),
        steps=st.integers(1, most_steps),
        cut=st.integers(0, 1000),
    )
