"""PyramidKV whose layers differ at every prompt length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from kvcheck.cache.method import MethodInfo
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.pyramidkv import PyramidKV


@dataclass(frozen=True)
class Pyramid(PyramidKV):
    """PyramidKV without the official code's flat rule for prompts of less than about twice the budget.

    budget, window, kernel, pooling, beta: as in PyramidKV. Every prompt of more than C tokens gets the schedule m_l.
    Bytes: 2·B·G·d·2·Σ_l (min(p, m_l + w) + decoded).
    """

    info: ClassVar[MethodInfo] = replace(PyramidKV.info, variant="the schedule of layers holds at every prompt length")

    def schedule(self, layers: int, index: int, prompt: int) -> int:
        """m_l: slots for tokens before the window that layer `index` is due."""
        base = self.cap(prompt) - self.window
        low = base // self.beta
        high = min(2 * base - low, prompt - self.window)
        low = 2 * base - high
        return high - index * ((high - low) // (layers - 1))

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """min(p, m_l + w) and everything decoded. Not by `prefix`, so that a slip there cannot hide itself."""
        if prompt <= self.cap(prompt):
            return (prompt + decoded,) * shape.layers
        each = (self.schedule(shape.layers, index, prompt) + self.window for index in range(shape.layers))
        return tuple(min(prompt, slots) + decoded for slots in each)

    def prefix(self, layers: int, index: int, prompt: int) -> int:
        """What layer `index` keeps before the window."""
        return self.schedule(layers, index, prompt)
