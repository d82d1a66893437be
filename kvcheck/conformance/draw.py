"""What Hypothesis draws: the shape of one trial. It shrinks towards few rows, short texts and plain Llama."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from hypothesis import strategies as st

from kvcheck.conformance.base import LONGEST

BLOCKS = (8, 16, 32, 64, 128)
"""Sizes around whose multiples windows, groups, pages and chunks have their borders."""
LONGEST_BLOCK = 70
"""Tokens of the longest follow-up."""
FEW_STEPS = 3
"""Tokens fed one by one in every other trial: a forward of a small model costs as much for one token as for thirty."""
MOST = 450
"""Tokens of the prompts of all rows, unless there is one row."""


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

    def fed(self) -> str:
        """In words. Some properties make a text longer, and feed more behind it."""
        parts = f"a prompt of {self.prompt}, a follow-up of {self.block}, {self.steps} one by one"
        return f"{parts}; rows: {self.rows}; model: small {self.architecture}"

    def text(self) -> str:
        """As keyword arguments, those that are not at their default."""
        changed = {each.name: getattr(self, each.name) for each in fields(self)}
        return ", ".join(f"{name}={value!r}" for name, value in changed.items() if value != _DEFAULTS[name])


_DEFAULTS: dict[str, object] = {each.name: each.default for each in fields(Draw)}


def lengths(longest: int = LONGEST) -> st.SearchStrategy[int]:
    """Lengths from 1 up: the shortest, short ones, borders of blocks, any, and long ones; seldom more than LONGEST."""
    usual = min(longest, LONGEST)
    borders = {size * times + beside for size in BLOCKS for times in (1, 2, 4, 8) for beside in (-1, 0, 1)}
    near = st.sampled_from(sorted(each for each in borders if 1 <= each <= longest))
    short, long = st.integers(1, min(40, usual)), st.integers(max(1, usual // 2), usual)
    kinds = [st.integers(1, 3), short, near, st.integers(1, usual), long]
    if longest > LONGEST:  # Hypothesis likes what is small: nearly as long as LONGEST would show nothing new
        kinds.append(st.integers(0, longest - LONGEST - 1).map(lambda less: longest - less))
    return st.one_of(kinds)


def draws(architectures: Sequence[str], longest: int = LONGEST, most_steps: int = 8) -> st.SearchStrategy[Draw]:
    """Trials on these small models."""
    return (
        st.builds(
            Draw,
            architecture=st.sampled_from(list(architectures)),
            seed=st.integers(0, 99),
            rows=st.integers(1, 3),
            prompt=lengths(longest),
            block=st.one_of(st.integers(1, 9), lengths(LONGEST_BLOCK)),
            steps=st.one_of(st.integers(1, min(FEW_STEPS, most_steps)), st.integers(1, most_steps)),
            cut=st.integers(0, 1000),
        )
        .map(bordering)
        .map(affordable)
    )


OFTEN = 4
"""One trial of so many ends a follow-up beside a border."""


def bordering(draw: Draw) -> Draw:
    """Now and then prompt and follow-up together end one token before, at or behind a border of another size."""
    gap = -draw.prompt % BLOCKS[draw.seed // OFTEN % len(BLOCKS)] + draw.cut % 3 - 1
    return replace(draw, block=gap) if draw.seed % OFTEN == OFTEN - 1 and 1 <= gap <= LONGEST_BLOCK else draw


def affordable(draw: Draw) -> Draw:
    """A batch of long texts takes long and shows no more than one of them: fewer rows then."""
    return replace(draw, rows=max(1, min(draw.rows, MOST // draw.prompt)))
