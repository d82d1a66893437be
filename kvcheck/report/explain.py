"""A failed case as a message, and the properties of a case for JUnit XML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kvcheck.core.escape import plain
from kvcheck.core.front import command, option
from kvcheck.core.record import AGAINST_OWN, RUN, CaseRecord, Verdict, context_score
from kvcheck.judging.explain import bearable, explain, headline
from kvcheck.report import verdict
from kvcheck.report.text import interval

OF_THE_RUN = {"budget", *AGAINST_OWN}
"""Questions that all cases of a method together are asked, too."""
ANSWER = 60
"""Characters of an answer that are shown."""


def fails(one: Verdict, strict: bool) -> bool:
    """Does this verdict fail its case, or whatever it is about?"""
    return one.outcome == "fail" or (strict and one.outcome == "inconclusive")


def fails_case(verdict: Verdict, strict: bool) -> bool:
    """The same of a single case: what it is too small to tell, the run of all cases is asked."""
    return fails(verdict, strict and verdict.question not in OF_THE_RUN)


def failure(
    record: CaseRecord,
    fp16: CaseRecord | None,
    verdicts: Sequence[Verdict],
    *,
    strict: bool = False,
    baseline: str = "",
    alpha: float | None = None,
) -> Iterator[str]:
    """The message of a failed case: the numbers, which pytest's short summary shows; what was measured, against what,
    how sure, an example, and what to type."""
    bad = sorted((one for one in verdicts if fails_case(one, strict)), key=lambda one: one.outcome != "fail")
    yield "; ".join(map(verdict.short, bad))
    for one in bad:
        yield explain(one, record, baseline, alpha=alpha)
    if not any(one.outcome == "fail" for one in bad):
        yield f"  inconclusive is a failure here because of {option('strict')}"
    yield from example(record, fp16)


def pooled(
    scope: str, method: str, found: Mapping[str, Sequence[Verdict]], settings: Mapping[str, str], strict: bool = False
) -> Iterator[str]:
    """The message of a scope that failed: its numbers, what its contexts show together, where, and what to type.

    found: the verdicts of every scope of the method. settings: those of the run's header.
    """
    bad = sorted((one for one in found[scope] if fails(one, strict)), key=lambda one: one.outcome != "fail")
    yield "; ".join(map(verdict.short, bad))
    for one in bad:
        yield f"  {method}, {scope}: {verdict.number(one, settings)}   {one.outcome.upper()}"
        if one.question in verdict.IN_WORDS:
            yield from one.reason.splitlines()[1:]
            continue
        same = one.n - one.lost - one.won
        yield f"  {one.n} contexts: {one.lost} lost, {one.won} won, {same} unchanged"
        yield f"  why: {one.reason}"
        yield from _where(scope, one.question, found)
        yield f"  {_remedy(method, one)}"
    if not any(one.outcome == "fail" for one in bad):
        yield f"  inconclusive is a failure here because of {option('strict')}"


def _where(scope: str, question: str, found: Mapping[str, Sequence[Verdict]]) -> Iterator[str]:
    """Of the whole run: the capabilities that lose most."""
    parts = [
        (one.value, name.partition(" ")[2])
        for name, verdicts in found.items()
        for one in verdicts
        if scope == RUN and name.startswith("capability ") and one.question == question and one.value > 0
    ]
    if parts and question in ("budget", "regression"):
        yield "  most in: " + ", ".join(f"{name} {value:.1f}" for value, name in sorted(parts, reverse=True)[:4])


def _remedy(method: str, one: Verdict) -> str:
    if one.outcome == "inconclusive":
        return f"more contexts: {command(method, n='auto')}"
    if one.question in AGAINST_OWN:
        return f"accept, if the change is meant: {command(method, record='changed')}"
    if one.question == "lossless":
        return f"a method that claims less is held to less (MethodInfo.lossless, nearly): {command(method)}"
    name = {"budget": "drop"}.get(one.question, one.question)
    return f"accept, if this price is right: {command(method, budget=f'{name}={bearable(one)}')}"


def scope_properties(scope: str, method: str, outcome: str, verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """(name, text) pairs for JUnit XML of a verdict on several cases."""
    pairs = [("scope", scope), ("method", method), ("outcome", outcome)]
    for one in verdicts:
        numbers = f"{one.value:.4g} {interval(one.low, one.high, 4)} of {one.limit:g} over {one.n}"
        pairs += [(f"verdict_{one.question}", one.outcome), (one.question, numbers)]
    return [(f"kvcheck_{name}", plain(text)) for name, text in pairs]


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
                said = f"answered {turn.answer[:ANSWER]!r}, fp16 {before.answer[:ANSWER]!r}"
                yield f"  for example: sample {sample.index}, turn {number}{depth}: {said}"
                return


def latency_failure(method: str, length: int, verdicts: Sequence[Verdict], strict: bool) -> Iterator[str]:
    """The message of a failed latency item."""
    yield f"latency at {length} tokens  {method}"
    for one in verdicts:
        if fails(one, strict):
            yield f"  {headline(one)}"
            yield f"  why: {one.reason}"
            yield f"  accept: {command(method, budget=f'{one.question}={one.high * 1.005:.3g}')}"


def properties(record: CaseRecord, fp16: CaseRecord | None, verdicts: Sequence[Verdict]) -> Iterator[tuple[str, str]]:
    """(name, text) pairs for JUnit XML, made harmless: who reads the file may show them as they are."""
    for name, text in _properties(record, fp16, verdicts):
        yield name, plain(text)


def _properties(record: CaseRecord, fp16: CaseRecord | None, verdicts: Sequence[Verdict]) -> Iterator[tuple[str, str]]:
    yield "case", str(record.case)
    yield "method", record.method
    yield "model", record.model
    if record.scored:
        yield "accuracy", f"{record.accuracy:.4f}"
    if fp16 is not None and record.scored:
        yield "fp16_accuracy", f"{fp16.accuracy:.4f}"
    if record.memory is not None:
        yield "kv_ratio", f"{record.memory.ratio:.4f}"
        if record.memory.host_bytes:
            yield "host_bytes", f"{record.memory.host_bytes}"
    for one in verdicts:
        if one.question == "budget":
            yield "drop", f"{one.value:.2f}"
        yield f"verdict_{one.question}", one.outcome
