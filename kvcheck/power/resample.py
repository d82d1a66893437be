"""Records of a simulated run: contexts drawn anew, with replacement, from those recorded for the same case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kvcheck.core.record import CaseId, CaseRecord, SampleRecord
from kvcheck.power.judging import BLOCK
from kvcheck.power.recorded import Recorded


def draw(
    recorded: Recorded, method: str, rng: np.random.Generator, n: int | None = None
) -> tuple[list[CaseRecord], list[CaseRecord]]:
    """(own, fp16): the records of a run, the same contexts in both and in every mode in which they are asked.

    n: contexts per case, where it is not that of the profile. Within a block the contexts are put in order: nobody
    looks inside a block, and equal blocks are judged once.
    """
    picks: dict[tuple[str, int, int], list[int]] = {}
    own, fp16 = [], []
    for case in recorded.cases:
        case = case if n is None else replace(case, n=n)
        mine, theirs = recorded.pair(method, case)
        known = {sample.index: sample for sample in theirs.samples}
        place = (case.task, case.length, case.seed)
        if place not in picks:
            drawn = rng.integers(0, len(mine.samples), case.n)
            for start in range(0, case.n, BLOCK):
                drawn[start : start + BLOCK].sort()
            picks[place] = drawn.tolist()
        chosen = [mine.samples[at] for at in picks[place]]
        own.append(of(mine, case, chosen))
        fp16.append(of(theirs, case, [known[sample.index] for sample in chosen]))
    return own, fp16


def of(record: CaseRecord, case: CaseId, samples: list[SampleRecord]) -> CaseRecord:
    """A complete record of these contexts, numbered anew. Bytes are left out: a simulation holds none."""
    numbered = tuple(replace(sample, index=at, weight=None) for at, sample in enumerate(samples))
    return replace(record, case=case, samples=numbered, memory=None, latency=(), not_measured=())


def pooled(samples: list[SampleRecord], like: CaseRecord) -> CaseRecord:
    """One complete case of these contexts, which may come from many cases."""
    return of(like, CaseId("pooled", 1, "single", like.case.length, 0, len(samples)), samples)
