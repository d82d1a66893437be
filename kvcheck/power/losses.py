"""True losses: what a worse method does to the answers of the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvcheck.core.record import CaseRecord, SampleRecord, TurnRecord

CONTEXTS, ANSWERS, TOGETHER = "contexts", "answers", "together"
"""What is lost at once: all answers of a context, single answers, or a context in every mode in which it is asked."""


@dataclass(frozen=True)
class Loss:
    """What is lost, in the cases of `scope` ("" for all, "capability NAME", "task NAME").

    share: the chance that what `unit` says is lost. rises: nats per token, one drawn for each lost answer and added
    to its nll; without any, a lost answer keeps its nll. nll: nats per token by which every answer gets less likely.
    kl: by which every KL from fp16 is multiplied.
    """

    share: float = 0.0
    unit: str = CONTEXTS
    scope: str = ""
    rises: tuple[float, ...] = ()
    nll: float = 0.0
    kl: float = 1.0

    def taking(self, points: float, accuracy: float, rises: tuple[float, ...] = ()) -> Loss:
        """The same with the share that lowers a mean score of `accuracy`, in [0, 1], by `points`; at most all of it."""
        share = points / 100 / accuracy if accuracy else math.inf
        return replace(self, share=min(1.0, share), rises=rises)

    def covers(self, record: CaseRecord) -> bool:
        """Whether the record lies in the scope."""
        return self.scope in ("", f"capability {record.capability}", f"task {record.case.task}")

    def apply(self, records: Sequence[CaseRecord], rng: np.random.Generator) -> list[CaseRecord]:
        """The records of a run with the loss in them."""
        if not self.share and not self.nll and self.kl == 1:
            return list(records)
        gone: dict[tuple[str, int, int, int], bool] = {}

        def lost(record: CaseRecord, sample: SampleRecord) -> list[bool]:
            """Of each turn."""
            count = len(sample.turns)
            if self.unit == ANSWERS:
                return list(rng.random(count) < self.share)
            if self.unit == CONTEXTS:
                return [bool(rng.random() < self.share)] * count
            name = (record.case.task, record.case.length, record.case.seed, sample.index)
            if name not in gone:
                gone[name] = bool(rng.random() < self.share)
            return [gone[name]] * count

        return [self._record(one, lost, rng) if self.covers(one) else one for one in records]

    def _record(
        self, record: CaseRecord, lost: Callable[[CaseRecord, SampleRecord], list[bool]], rng: np.random.Generator
    ) -> CaseRecord:
        samples = []
        for sample in record.samples:
            turns = (self._turn(turn, gone, rng) for turn, gone in zip(sample.turns, lost(record, sample), strict=True))
            samples.append(replace(sample, turns=tuple(turns)))
        return replace(record, samples=tuple(samples))

    def _turn(self, turn: TurnRecord, gone: bool, rng: np.random.Generator) -> TurnRecord:
        nll = turn.nll
        if nll is not None:
            rise = self.rises[int(rng.integers(len(self.rises)))] if gone and turn.score > 0 and self.rises else 0.0
            nll = max(0.0, nll + self.nll + rise)
        moved = replace(turn, nll=nll, kl=None if turn.kl is None else self.kl * turn.kl)
        return replace(moved, score=0.0, answer="") if gone else moved
