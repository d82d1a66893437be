"""A failed case as a message, and the properties of a case for JUnit XML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvcheck.core.escape import plain
from kvcheck.core.front import command, option
from kvcheck.core.record import CaseRecord, Verdict, context_score
from kvcheck.judging.explain import explain, headline
from kvcheck.judging.informative import QUESTION as INFORMATIVE

ANSWER = 60
"""Characters of an answer that are shown."""


def fails(verdict: Verdict, strict: bool) -> bool:
    """Does this verdict fail its case?"""
    return verdict.outcome == "fail" or (strict and verdict.outcome == "inconclusive")


def failure(
    record: CaseRecord,
    fp16: CaseRecord | None,
    verdicts: Sequence[Verdict],
    *,
    strict: bool = False,
    baseline: str = "",
    alpha: float | None = None,
) -> Iterator[str]:
    """The message of a failed case: what was measured, against what, how sure, an example, and what to type."""
    bad = [verdict for verdict in verdicts if fails(verdict, strict)]
    for verdict in sorted(bad, key=lambda verdict: verdict.outcome != "fail"):
        yield explain(verdict, record, baseline, alpha=alpha)
    if not any(verdict.outcome == "fail" for verdict in bad):
        yield f"  inconclusive is a failure here because of {option('strict')}"
    yield from example(record, fp16)


def pooled(scope: str, method: str, verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The message of a scope that failed: what all of its contexts show together."""
    yield f"{method}, {scope}: {headline(verdicts[0])}"
    for verdict in verdicts:
        yield f"  {headline(verdict)}"
        if verdict.question != INFORMATIVE:
            same = verdict.n - verdict.lost - verdict.won
            yield f"  {verdict.n} contexts: {verdict.lost} lost, {verdict.won} won, {same} unchanged"
        yield from f"  why: {verdict.reason}".splitlines()


def example(record: CaseRecord, fp16: CaseRecord | None) -> Iterator[str]:
    """The first turn that fp16 got right and the method got wrong."""
    known = {sample.index: sample for sample in fp16.samples} if fp16 is not None else {}
    for sample in record.samples:
        other = known.get(sample.index)
        if other is None or context_score(other) <= context_score(sample):
            continue
        for number, (turn, before) in enumerate(zip(sample.turns, other.turns, strict=False), 1):
            if turn.score < before.score:
                depth = "" if turn.depth is None else f", evidence at {turn.depth:.0%} of the context"
                yield f"  for example: sample {sample.index}, turn {number}{depth}: answered {turn.answer[:ANSWER]!r}"
                return


def latency_failure(method: str, length: int, verdicts: Sequence[Verdict], strict: bool) -> Iterator[str]:
    """The message of a failed latency item."""
    yield f"latency at {length} tokens  {method}"
    for verdict in verdicts:
        if fails(verdict, strict):
            yield f"  {headline(verdict)}"
            yield f"  why: {verdict.reason}"
            yield f"  accept: {command(method, budget=f'{verdict.question}={verdict.high * 1.005:.3g}')}"


def properties(record: CaseRecord, fp16: CaseRecord | None, verdicts: Sequence[Verdict]) -> Iterator[tuple[str, str]]:
    """(name, text) pairs for JUnit XML, made harmless: who reads the file may show them as they are."""
    for name, text in _properties(record, fp16, verdicts):
        yield name, plain(text)


def _properties(record: CaseRecord, fp16: CaseRecord | None, verdicts: Sequence[Verdict]) -> Iterator[tuple[str, str]]:
    yield "case", str(record.case)
    yield "method", record.method
    yield "model", record.model
    yield "accuracy", f"{record.accuracy:.4f}"
    if fp16 is not None:
        yield "fp16_accuracy", f"{fp16.accuracy:.4f}"
    if record.memory is not None:
        yield "kv_ratio", f"{record.memory.ratio:.4f}"
        if record.memory.host_bytes:
            yield "host_bytes", f"{record.memory.host_bytes}"
    for verdict in verdicts:
        if verdict.question == "budget":
            yield "drop", f"{verdict.value:.2f}"
        yield f"verdict_{verdict.question}", verdict.outcome
