"""Do the intervals of all cases together hold the truth? Of the run, of its capabilities and of its tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvcheck.core.record import CaseRecord, context_score
from kvcheck.power.rates import Rate
from kvcheck.power.recorded import Recorded
from kvcheck.power.runs import Outcome, Setup

LEVEL = 0.05
"""1 - the level of the intervals (kvcheck.judging.pooled.LEVEL)."""
SLACK = 1e-6
"""In the unit of the verdict, for rounding alone."""


@dataclass(frozen=True)
class Missed:
    """How often an interval lay beside the truth: above it (which accuses), or on either side."""

    question: str
    kind: str
    above: Rate
    either: Rate
    worst: str
    truth: float


def missed(recorded: Recorded, setup: Setup, found: list[Outcome], question: str) -> Iterator[Missed]:
    """Of the run, and of all capabilities and tasks together. truth: of the run of the last outcome, for the table."""
    source = setup.source(recorded)
    truths: dict[tuple[str, str], float] = {}
    tally: dict[str, list[tuple[bool, bool]]] = {}
    for one in found:
        for scope, verdicts in one.judged.pooled.items():
            for verdict in (each for each in verdicts if each.question == question):
                key = (one.method, scope)
                if key not in truths:
                    truths[key] = truth(source, setup, one.method, scope, question)
                above = truths[key] < verdict.low - SLACK
                tally.setdefault(scope, []).append((above, above or truths[key] > verdict.high + SLACK))
    for kind in ("run", "capability", "task"):
        mine = {scope: seen for scope, seen in tally.items() if scope.partition(" ")[0] == kind}
        if mine:
            every = [both for seen in mine.values() for both in seen]
            high, either = (sum(both[side] for both in every) for side in (0, 1))
            worst = max(mine, key=lambda scope: sum(both[1] for both in mine[scope]) / len(mine[scope]))
            rate = Rate(sum(both[1] for both in mine[worst]), len(mine[worst]))
            name = worst.partition(" ")[2]
            yield Missed(
                question,
                kind,
                Rate(high, len(every), LEVEL / 2),
                Rate(either, len(every), LEVEL),
                f"{name} {rate}" if name else "",
                truths[found[-1].method, "run"],
            )


def truth(source: Recorded, setup: Setup, method: str, scope: str, question: str) -> float:
    """What the verdict of a scope estimates, in its unit, for a loss of a share that is given."""
    total, count = 0.0, 0
    for case in source.within(scope):
        own, fp16 = source.pair(method, case)
        total += case.n * (_drop(setup, own, fp16) if question == "budget" else _rise(own, fp16))
        count += case.n
    return total / count


def _drop(setup: Setup, own: CaseRecord, fp16: CaseRecord) -> float:
    """Points; both sides are measured on a machine of their own."""
    lost = setup.loss.share if setup.loss.covers(own) else 0.0
    flips = setup.noise.flips
    now, then = (sum(context_score(one) for one in record.samples) / len(record.samples) for record in (own, fp16))
    return 100 * (then + flips * (1 - 2 * then) - (1 - lost) * (now + flips * (1 - 2 * now)))


def _rise(own: CaseRecord, fp16: CaseRecord) -> float:
    """Nats per token."""
    theirs = {sample.index: sample for sample in fp16.samples}
    means = []
    for sample in own.samples:
        turns = zip(sample.turns, theirs[sample.index].turns, strict=True)
        known = [a.nll - b.nll for a, b in turns if a.nll is not None and b.nll is not None]
        means += [sum(known) / len(known)] if known else []
    return sum(means) / len(means)
