"""Has a method acted at all? Asked of all cases of a method in a run, whatever kind of cache it has.

Its log-probabilities of all tokens behind every reference answer stand beside the full cache's of the same process
(MemoryRecord.apart). Where they are the same everywhere but for the order of sums, the method read what the full cache
reads: then it cannot hold less, and it does nothing of what it claims. KL could not tell: a model that is sure of its
answers moves it by less than 1e-6 where a code of 8 bits moves the logits by a tenth.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvcheck.core.record import FREES, IDLE, LOSSLESS, CaseRecord, MemoryRecord, Verdict

ROUNDING = 1e-3
"""Nats by which the same sums in another order move a log-probability at most, in 32 bits: ten times what was seen. In
16 bits steps are larger, and equal logits are still equal."""
FEWER, SMALLER = 0.99, 0.5
"""Shares of the slots or bytes below which something must show: no lossless code halves keys and values."""


def judge_acted(cases: Sequence[tuple[CaseRecord, CaseRecord | None]]) -> Verdict | None:
    """The verdict on all cases of one method, each with fp16's record where there is one; None where it is seen to act,
    where it is one that need not, and where logits or bytes were not measured.

    It fails where all contexts in which fewer bytes are held than fp16 holds have fp16's logits, and where a method
    claims to free memory, and in every case bytes, logits and answers are fp16's. One that claims nothing passes with a
    reason that is to be shown.
    """
    known = [
        (one, other) for one, other in cases if one.method != "fp16" and one.memory and one.memory.apart is not None
    ]
    if not known:
        return None
    fewer = [one for one, _ in known if one.memory is not None and _fewer(one.memory)]
    if fewer:
        return None if not all(map(_same_logits, fewer)) else _verdict(fewer, "fail", "answers from something else")
    memories = [one.memory for one, _ in known if one.memory is not None]
    if not all(_same_logits(one) and _same_answers(one, other) for one, other in known):
        return None
    if any(memory.kv_bytes < memory.dense_bytes or _less_at_the_end(memory) for memory in memories):
        return None
    records = [one for one, _ in known]
    if memories[0].does(LOSSLESS) or memories[0].claims is None:
        return None
    if memories[0].does(FREES):
        idle = any(IDLE in dict(one.not_measured) for one in records)
        return None if idle else _verdict(records, "fail", "claims to hold less than fp16 and changes nothing")
    return _verdict(records, "pass", "claims nothing and changes nothing: it is fp16 by all that was measured")


def _verdict(records: Sequence[CaseRecord], outcome: str, what: str) -> Verdict:
    """On these cases together; the value is the share of fp16's bytes that is held."""
    memories = [one.memory for one in records if one.memory is not None]
    share = sum(one.kv_bytes + one.host_bytes for one in memories) / sum(one.dense_bytes for one in memories)
    contexts = sum(len(one.samples) for one in records)
    reason = f"{what}: {share:.0%} of fp16's bytes, and fp16's logits in all of {contexts} contexts"
    return Verdict("acted", outcome, share, share, share, 1.0, contexts, reason=reason)


def _fewer(memory: MemoryRecord) -> bool:
    """Whether less is held than can hold everything. A code that loses nothing may do with somewhat less."""
    share = (memory.kv_bytes + memory.host_bytes) / memory.dense_bytes
    return share < (SMALLER if memory.does(LOSSLESS) else FEWER)


def _less_at_the_end(memory: MemoryRecord) -> bool:
    """Whether a method that acts while decoding has."""
    return memory.end_ratio is not None and memory.end_ratio < FEWER


def _same_logits(record: CaseRecord) -> bool:
    return record.memory is not None and record.memory.apart is not None and record.memory.apart <= ROUNDING


def _same_answers(record: CaseRecord, fp16: CaseRecord | None) -> bool:
    """Whether no answer differs from fp16's, as far as these are known."""
    theirs = {sample.index: [turn.answer for turn in sample.turns] for sample in fp16.samples} if fp16 else {}
    return all(theirs.get(one.index) in (None, [turn.answer for turn in one.turns]) for one in record.samples)
