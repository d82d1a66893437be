"""The noise model: what running a method again on another machine does to its answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kvcheck.core.record import CaseRecord, SampleRecord, TurnRecord
from kvcheck.judging.questions import DriftRule

JUMP = 1.0
"""Nats per token by which the reference answers of a context move that other hardware moves far; above
DriftRule.broken."""


@dataclass(frozen=True)
class Noise:
    """How a record of one machine differs from the truth; two machines differ from it alike, so nothing is worse.

    flips: chance that an answer turns over, a score s becoming 1 - s: it was close, so its nll hardly moves.
    jumps: chance that the nll of a whole context moves by JUMP, up or down alike (never below 0).
    jitter: relative standard deviation of every nll, well inside the drift rule's tolerance. spread: that of every KL,
    which moves with the nll of a context.
    """

    name: str
    flips: float = 0.0
    jumps: float = 0.0
    jitter: float = 0.0
    spread: float = 0.0

    @property
    def is_none(self) -> bool:
        """Whether every number is repeated."""
        return not (self.flips or self.jumps or self.jitter or self.spread)

    def apply(self, record: CaseRecord, rng: np.random.Generator) -> CaseRecord:
        """The record as it comes out on one machine."""
        if self.is_none:
            return record
        return replace(record, samples=tuple(self._context(sample, rng) for sample in record.samples))

    def _context(self, sample: SampleRecord, rng: np.random.Generator) -> SampleRecord:
        jump = 0.0
        if rng.random() < self.jumps:
            jump = JUMP if rng.random() < 0.5 else -JUMP
        flips = (rng.random(len(sample.turns)) < self.flips).tolist()
        factors = np.exp(self.jitter * rng.standard_normal(len(sample.turns))).tolist()
        wider = np.exp(self.spread * rng.standard_normal(len(sample.turns))).tolist()
        turns = map(_turn, sample.turns, flips, factors, wider, [jump] * len(flips))
        return replace(sample, turns=tuple(turns))

    def __str__(self) -> str:
        if self.is_none:
            return "every answer is repeated"
        often = f"{1 / self.jumps:,.0f}" if self.jumps else "infinitely many"
        return (
            f"{self.flips:.1%} of the answers turn over, the nll of one context in {often} "
            f"moves by {JUMP:g} nat per token, every nll by {self.jitter:.1%}, every KL by {self.spread:.0%}"
        )


def _turn(turn: TurnRecord, flip: bool, factor: float, wider: float, jump: float) -> TurnRecord:
    nll = None if turn.nll is None else max(0.0, turn.nll * factor + jump)
    kl = None if turn.kl is None else max(0.0, turn.kl * wider + jump)
    moved = replace(turn, nll=nll, kl=kl)
    return replace(moved, score=1.0 - turn.score, answer=f"not {turn.answer}") if flip else moved


IDENTICAL = Noise("identical")
ANOTHER_MACHINE = Noise("another machine", flips=0.005, jumps=DriftRule.noise, jitter=0.002, spread=0.05)
MANY_FLIPS = replace(ANOTHER_MACHINE, name="5 % of the answers flip", flips=0.05)
