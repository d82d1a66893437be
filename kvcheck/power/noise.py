"""The noise model: what running a method again on another machine does to its answers. And what a true drop does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvcheck.core.record import CaseRecord, SampleRecord, TurnRecord
from kvcheck.judging.questions import DriftRule

JUMP = 1.0
"""Nats per token by which the reference answers of a context move that other hardware moves far; above
DriftRule.broken."""


@dataclass(frozen=True)
class Noise:
    """How two records of the same method differ.

    flips: chance that an answer turns over, a score s becoming 1 - s: it was close, so its nll hardly moves.
    jumps: chance that the nll of a whole context moves by JUMP, up or down alike (never below 0).
    jitter: relative standard deviation of every nll, well inside the drift rule's tolerance.
    both: the stored record and the rerun are two machines with the same noise, so that nothing is better or worse.
    Otherwise the stored record is the truth, answers can only be lost and nll only rises: the worst other machine.
    """

    name: str
    flips: float = 0.0
    jumps: float = 0.0
    jitter: float = 0.0
    both: bool = True

    def apply(self, record: CaseRecord, rng: np.random.Generator) -> CaseRecord:
        """The record as it comes out on one machine."""
        if not (self.flips or self.jumps or self.jitter):
            return record
        return replace(record, samples=tuple(self._context(sample, rng) for sample in record.samples))

    def _context(self, sample: SampleRecord, rng: np.random.Generator) -> SampleRecord:
        jump = 0.0
        if rng.random() < self.jumps:
            jump = JUMP if not self.both or rng.random() < 0.5 else -JUMP
        flips = rng.random(len(sample.turns)) < self.flips
        factors = np.exp(self.jitter * rng.standard_normal(len(sample.turns)))
        turns = [
            self._turn(turn, bool(flip), float(factor), jump)
            for turn, flip, factor in zip(sample.turns, flips, factors, strict=True)
        ]
        return SampleRecord(sample.index, sample.digest, tuple(turns))

    def _turn(self, turn: TurnRecord, flip: bool, factor: float, jump: float) -> TurnRecord:
        score, answer = turn.score, turn.answer
        if flip and (self.both or score > 0.5):
            score, answer = 1.0 - score, f"not {answer}"
        nll = None if turn.nll is None else max(0.0, turn.nll * factor + jump)
        return TurnRecord(score, answer, turn.subtask, turn.depth, nll, turn.agree, turn.kl)

    def __str__(self) -> str:
        if not (self.flips or self.jumps or self.jitter):
            return "the rerun repeats every answer"
        sides = "on both machines alike" if self.both else "on the rerun only, downwards only"
        often = f"{1 / self.jumps:,.0f}" if self.jumps else "infinitely many"
        return (
            f"{self.flips:.1%} of the answers turn over, the nll of one context in {often} "
            f"moves by {JUMP:g} nat per token, every nll by {self.jitter:.1%}; {sides}"
        )


IDENTICAL = Noise("identical")
ANOTHER_MACHINE = Noise("another machine", flips=0.005, jumps=DriftRule.noise, jitter=0.002)
ONE_WAY = Noise("one way", flips=DriftRule.points / 100, jumps=DriftRule.noise, jitter=0.002, both=False)
"""All that DriftRule grants other hardware, and all of it downwards."""


@dataclass(frozen=True)
class Loss:
    """A true drop: every context loses all its answers with probability `share`.

    rises: nats per token, one drawn for each lost answer and added to its nll. None: nll is not measured at all, so
    that the scores alone must tell.
    """

    share: float
    rises: Sequence[float] | None

    @classmethod
    def of(cls, points: float, accuracy: float, rises: Sequence[float] | None) -> Loss:
        """The loss that lowers a mean score of `accuracy` by `points`."""
        share = points / 100 / accuracy if accuracy else math.inf
        return cls(min(1.0, share), rises)

    def apply(self, record: CaseRecord, rng: np.random.Generator) -> CaseRecord:
        """The record with the lost contexts in it."""
        lost = rng.random(len(record.samples)) < self.share
        samples = [self._context(one, bool(gone), rng) for one, gone in zip(record.samples, lost, strict=True)]
        return replace(record, samples=tuple(samples))

    def _context(self, sample: SampleRecord, gone: bool, rng: np.random.Generator) -> SampleRecord:
        if not gone and self.rises is not None:
            return sample
        turns = []
        for turn in sample.turns:
            nll = turn.nll
            if self.rises is None:
                nll = None
            elif gone and nll is not None and turn.score > 0 and self.rises:
                nll = max(0.0, nll + self.rises[int(rng.integers(len(self.rises)))])
            score, answer = (0.0, "") if gone else (turn.score, turn.answer)
            turns.append(TurnRecord(score, answer, turn.subtask, turn.depth, nll, turn.agree, turn.kl))
        return SampleRecord(sample.index, sample.digest, tuple(turns))
