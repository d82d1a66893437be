"""Cutting a prompt in the middle, by tokens, as the benchmarks do."""

from __future__ import annotations

from dataclasses import replace

from kvcheck.core.errors import SpecError
from kvcheck.core.front import option
from kvcheck.tasks.base import Sample, Tokenizer

ROUNDS = 8


def shorten(sample: Sample, length: int, tokenizer: Tokenizer, alone: bool = False) -> Sample:
    """The sample with a first prompt of at most `length` tokens: its first and last int(length / 2) tokens are kept.

    Both halves are decoded and joined, as LongBench, SCBench and InfiniteBench do; where the joined text encodes to
    more tokens than `length`, the halves shrink until it does not (upstream leaves it). alone: the context is measured
    and cut without a question (SCBench's multi-request form). A question longer than the second half loses its
    beginning, as it does upstream. Raises SpecError where nothing would be left of the context's end or question.
    """
    first = sample.turns[0]
    tail = "" if alone else first.question + first.lead
    ids = tokenizer.encode(sample.context + tail)
    if len(ids) <= length:
        return sample
    half = int(length / 2)
    for _ in range(ROUNDS):
        if half < 1:
            break
        context, question = _halves(sample, ids, half, tail, tokenizer)
        over = len(tokenizer.encode(context + (question if question is not None else tail))) - length
        if over <= 0:
            return _with(sample, context, question)
        half -= (over + 1) // 2
    raise SpecError(
        f"{sample.task}: row {sample.row} cannot be cut to {length} tokens", f"ask for longer {option('lengths')}"
    )


def _halves(sample: Sample, ids: list[int], half: int, tail: str, tokenizer: Tokenizer) -> tuple[str, str | None]:
    """The context cut to both halves, and what is left of the question (None: all of it)."""
    head, end = tokenizer.decode(ids[:half]), tokenizer.decode(ids[-half:])
    if end.endswith(tail):
        return head + end[: len(end) - len(tail)], None
    if tail.endswith(end) and end:
        return head, end
    # The tokenizer does not give back what it was given: cut the context alone, so that the question stays whole.
    inner, asked = tokenizer.encode(sample.context), len(tokenizer.encode(tail))
    rest = max(half - asked, 0)
    return tokenizer.decode(inner[:half]) + (tokenizer.decode(inner[-rest:]) if rest else ""), None


def _with(sample: Sample, context: str, question: str | None) -> Sample:
    """The sample with another context, and with a first question (and lead) of which only the end is left."""
    if question is None:
        return replace(sample, context=context)
    first = sample.turns[0]
    if len(question) <= len(first.lead):
        raise SpecError(f"{sample.task}: nothing is left of the question of row {sample.row}", "ask for longer texts")
    kept = question[: len(question) - len(first.lead)]
    return replace(sample, context=context, turns=(replace(first, question=kept), *sample.turns[1:]))
