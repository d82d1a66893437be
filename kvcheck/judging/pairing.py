"""Pairs the contexts of two records of one case, and refuses what cannot be compared. Pure."""

from __future__ import annotations

import math

from kvcheck.core.errors import BaselineError, MethodFailed, MissingBaseline, NotComparable
from kvcheck.core.front import command, option
from kvcheck.core.record import CaseId, CaseRecord, SampleRecord
from kvcheck.store.lines import SCORE_DIGITS

_INPUTS = {"beginning": "prompts begin with", "tokenizer": "the tokenizer is a"}
"""How messages say what decides token ids; packages by their names."""
Pairs = list[tuple[SampleRecord, SampleRecord]]


def record_command(record: CaseRecord, verb: str = "new") -> str:
    """The command that records this method (or, for a spec of fp16, the fp16 baseline)."""
    return command(record.method, record=verb)


def check_record(record: CaseRecord, *, whose: str = "") -> None:
    """Refuse a record without samples or turns, with repeated indices, or with numbers that are not finite."""
    error = BaselineError if whose else MethodFailed
    name = f"{whose or record.method} on {record.case}"
    if not record.samples or not all(sample.turns for sample in record.samples):
        raise error(f"{name}: no samples", "nothing was measured, so nothing can be judged; see the captured output")
    indices = [sample.index for sample in record.samples]
    if len(set(indices)) != len(indices):
        raise error(f"{name}: a sample index occurs twice", "each context is measured once; this is a bug in the run")
    for sample in record.samples:
        for turn in sample.turns:
            numbers = [turn.score, *(value for value in (turn.nll, turn.agree, turn.kl) if value is not None)]
            if not all(math.isfinite(value) for value in numbers):
                hint = "look for a NaN in the cache: an empty slot, a scale of zero, an overflow in 16 bits"
                raise error(f"{name}: sample {sample.index} has a value that is not finite", hint)
            if not 0.0 <= turn.score <= 1.0:
                raise error(f"{name}: sample {sample.index} has the score {turn.score}", "scores lie in [0, 1]")


def expect_contexts(case: CaseId, other: CaseRecord, whose: str) -> None:
    """Raise MissingBaseline where a baseline holds fewer contexts than the case asks for."""
    if len(other.samples) < case.n:
        raise _too_few(case, other, whose)


def _too_few(case: CaseId, other: CaseRecord, whose: str) -> MissingBaseline:
    held = len(other.samples)
    return MissingBaseline(
        f"the record of {whose} for {case.key} holds {held} contexts; this run has {case.n}",
        f"take {option('n')}={held}, or record it again: {command(whose, record='changed', n=case.n)}",
    )


def pair(record: CaseRecord, other: CaseRecord, whose: str) -> Pairs:
    """The record's samples with those of a baseline, by index and digest. whose: "fp16" or the method's spec.

    Raises MissingBaseline when the baseline lacks contexts, NotComparable when anything else does not fit.
    """
    check_record(record)
    check_record(other, whose=f"the record of {whose}")
    name = f"the record of {whose} for {record.case.key}"
    renew = f"record it again: {command(whose, record='changed')}"
    facts: list[tuple[str, object, object]] = [
        ("case", record.case.key, other.case.key),
        ("model", record.model, other.model),
        ("query_aware", record.query_aware, other.query_aware),
        *_switches(record, other),
    ]
    for what, now, then in facts:
        if now != then:
            raise NotComparable(f"{name} does not fit: {what} is {then} there and {now} here", renew)
    theirs = {sample.index: sample for sample in other.samples}
    if any(sample.index not in theirs for sample in record.samples):
        raise _too_few(record.case, other, whose)
    pairs = [(sample, theirs[sample.index]) for sample in record.samples]
    for mine, its in pairs:
        if mine.digest != its.digest or len(mine.turns) != len(its.turns):
            raise NotComparable(f"{name} is stale: sample {mine.index} has other prompts there", renew)
    expect_same_inputs(record, other, whose)
    return pairs


def expect_same_inputs(record: CaseRecord, other: CaseRecord, whose: str) -> None:
    """Raise NotComparable where a context that both have was fed as other token ids, or graded by another rule.

    Where only one of the two knows, nobody can tell, and they are compared.
    """
    name = f"the record of {whose} for {record.case.key}"
    renew = f"record it again: {command(whose, record='changed')}"
    theirs = {sample.index: sample for sample in other.samples}
    for mine in record.samples:
        its = theirs.get(mine.index)
        if its is None:
            continue
        if not _same(mine.fed, its.fed):
            why = _why_other_ids(record, other)
            raise NotComparable(f"{name} has other token ids in sample {mine.index}: {why}", renew)
        if not _same(mine.graded, its.graded):
            what = "another metric, other code of it, other stop strings or another token limit"
            raise NotComparable(f"{name} was graded otherwise in sample {mine.index}: {what}", renew)


def same_inputs(mine: SampleRecord, other: SampleRecord) -> bool:
    """Whether two records are of one context, fed and graded alike as far as both know."""
    alike = _same(mine.fed, other.fed) and _same(mine.graded, other.graded)
    return mine.digest == other.digest and alike


def _same(mine: str | None, other: str | None) -> bool:
    return mine is None or other is None or mine == other


def _why_other_ids(record: CaseRecord, other: CaseRecord) -> str:
    """What is known to decide the ids of a text and is not the same, in words."""
    mine, theirs = dict(record.inputs), dict(other.inputs)
    if not mine or not theirs:
        return "which packages made them is not recorded"
    differ = [
        f"{_INPUTS.get(name, name)} {theirs[name]} there and {mine[name]} here"
        for name in sorted(mine.keys() & theirs.keys())
        if mine[name] != theirs[name]
    ]
    return (
        ", ".join(differ)
        or "the same tokenizer, beginning and packages; kvcheck itself puts prompts together otherwise"
    )


def _switches(record: CaseRecord, other: CaseRecord) -> list[tuple[str, object, object]]:
    """(name, here, there) of what decides the scores of a public benchmark."""
    mine, theirs = dict(record.switches), dict(other.switches)
    return [
        (name, mine.get(name, "not recorded"), theirs.get(name, "not recorded")) for name in sorted({*mine, *theirs})
    ]


def differences(pairs: Pairs) -> list[float]:
    """Baseline score minus score, per context: above 0 is a loss."""
    return [score(then) - score(now) for now, then in pairs]


def score(sample: SampleRecord) -> float:
    """Mean score of a context, each turn rounded as a baseline stores it."""
    return sum(round(turn.score, SCORE_DIGITS) for turn in sample.turns) / len(sample.turns)


def identical(pairs: Pairs) -> bool:
    """Whether every score and every answer text is the same."""
    return all(
        round(a.score, SCORE_DIGITS) == round(b.score, SCORE_DIGITS) and a.answer == b.answer
        for now, then in pairs
        for a, b in zip(now.turns, then.turns, strict=True)
    )


def is_complete(record: CaseRecord) -> bool:
    """Whether all contexts of the case were measured, so that tests for a fixed n hold."""
    return len(record.samples) >= record.case.n


def is_right_or_wrong(pairs: Pairs) -> bool:
    """Whether each context has one question and every score is 0 or 1."""
    return all(len(s.turns) == 1 and s.turns[0].score in (0, 1) for both in pairs for s in both)
