"""Records of a simulated run: contexts drawn anew, with replacement, from those recorded for the same case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kvcheck.core.record import CaseId, CaseRecord, SampleRecord
from kvcheck.power.judging import BLOCK


def draw(case: CaseId, own: CaseRecord, fp16: CaseRecord, rng: np.random.Generator) -> tuple[CaseRecord, CaseRecord]:
    """(own, fp16) on case.n contexts, the same ones in both.

    Within a block the contexts are put in order: nobody looks inside a block, and equal blocks are judged once.
    """
    picks = rng.integers(0, len(own.samples), case.n)
    for start in range(0, case.n, BLOCK):
        picks[start : start + BLOCK].sort()
    theirs = {sample.index: sample for sample in fp16.samples}
    base = tuple(theirs[own.samples[at].index] for at in picks)
    return _of(own, case, tuple(own.samples[at] for at in picks)), _of(fp16, case, base)


def _of(record: CaseRecord, case: CaseId, samples: tuple[SampleRecord, ...]) -> CaseRecord:
    """A record of these contexts, numbered anew."""
    numbered = tuple(SampleRecord(at, sample.digest, sample.turns) for at, sample in enumerate(samples))
    return replace(record, case=case, samples=numbered)


def pooled(samples: list[SampleRecord], like: CaseRecord) -> CaseRecord:
    """One complete case of these contexts, which may come from many cases. Bytes are left out."""
    case = CaseId("pooled", 1, "single", like.case.length, 0, len(samples))
    return replace(_of(like, case, tuple(samples)), memory=None, latency=(), not_measured=())


def widths(vectors: list[tuple[float, ...]]) -> NDArray[np.float64]:
    """Scores per turn as rows of one array, filled up with NaN."""
    most = max(len(one) for one in vectors)
    return np.array([[*one, *[np.nan] * (most - len(one))] for one in vectors])
