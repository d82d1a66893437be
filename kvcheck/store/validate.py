"""What a record may hold, field by field: what is read from a file is checked by what stands here, whoever wrote it."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Iterator
from typing import Any

from kvcheck.core.errors import BaselineError
from kvcheck.core.record import (
    CAPABILITIES,
    MODES,
    CaseId,
    CaseRecord,
    LatencyRecord,
    MemoryRecord,
    SampleRecord,
    TurnRecord,
    Weight,
)

LONGEST = 10**7
"""Tokens of a context. Nobody's model has as many."""
SIZE = 2**60
"""Bytes."""
NATS = 1e6
"""More than logits of 16 bits can be apart."""
DIGITS = 25
"""Of a number in a file."""
COSTS = "latency"
"""The capability of a record without samples, see `record.cost_record`."""

Rule = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words and as a test."""


def _whole(low: int = 0, high: int = SIZE) -> Rule:
    return f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high


def _real(low: float = 0.0, high: float = 1e300) -> Rule:
    """Never NaN, never infinite, never longer than a float."""
    say = f"a number from {low:g} to {high:g}"
    return say, lambda value: type(value) in (int, float) and low <= value <= high


def _maybe(rule: Rule) -> Rule:
    return f"{rule[0]} or nothing", lambda value: value is None or rule[1](value)


def _text(most: int = 1000, least: int = 1) -> Rule:
    return (
        f"a text of {least} to {most} characters",
        lambda value: isinstance(value, str) and least <= len(value) <= most,
    )


def _word(pattern: str, say: str) -> Rule:
    return say, lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


def _among(*known: str) -> Rule:
    return f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known


def _pairs() -> Rule:
    name = _text()[1]
    return (
        "pairs of texts under different names",
        lambda value: (
            isinstance(value, tuple)
            and all(isinstance(pair, tuple) and len(pair) == 2 and all(map(name, pair)) for pair in value)
            and len(dict(value)) == len(value)
        ),
    )


_FLAG: Rule = ("true or false", lambda value: type(value) is bool)
_PART: Rule = ("", lambda value: True)  # looked at by itself

RULES: dict[type, dict[str, Rule]] = {
    CaseId: {
        "task": _text(),
        "version": _whole(1, 10**6),
        "mode": _among(*MODES),
        "length": _whole(1, LONGEST),
        "seed": _whole(0, 2**63),
        "n": _whole(1, 10**6),
    },
    CaseRecord: {
        "case": _PART,
        "method": _text(10_000),
        "model": _word(r"[!-~]{1,100}", "a fingerprint"),
        "capability": _among(*CAPABILITIES, COSTS),
        "query_aware": _FLAG,
        "binary": _FLAG,
        "chance": _real(0, 1),
        "samples": _PART,
        "memory": _PART,
        "latency": _PART,
        "stopped": _text(),
        "not_measured": _pairs(),
        "switches": _pairs(),
    },
    SampleRecord: {
        "index": _whole(0, 10**6),
        "digest": _word("[0-9a-f]{12}", "twelve hex digits"),
        "turns": _PART,
        "weight": _PART,
    },
    TurnRecord: {
        "score": _real(0, 1),
        "answer": _text(10**6, 0),
        "subtask": _text(1000, 0),
        "depth": _maybe(_real(0, 1)),
        "nll": _maybe(_real(0, NATS)),
        "agree": _maybe(_real(0, 1)),
        "kl": _maybe(_real(0, NATS)),
    },
    MemoryRecord: {
        "kv_bytes": _whole(),
        "dense_bytes": _whole(1),
        "meta_bytes": _whole(),
        "kept": _real(0, SIZE),
        "seen": _whole(1, 2 * LONGEST),
        "layers": _whole(0, 10**5),
        "touched": _whole(0, 10**5),
        "peak_bytes": _maybe(_whole()),
        "host_bytes": _whole(),
        "declared": _FLAG,
    },
    Weight: {
        "kv": _whole(),
        "kept": _real(0, SIZE),
        "dense": _whole(),
        "meta": _whole(),
        "host": _whole(),
        "seen": _whole(),
        "caches": _whole(1, 10**6),
    },
    LatencyRecord: {
        "what": _among("ttft", "tpot", "throughput"),
        "length": _whole(1, LONGEST),
        "seconds": _real(),
        "fp16_seconds": _real(),
        "ratio": _real(),
        "low": _real(),
        "high": _real(),
        "rounds": _whole(1, 10**6),
        "batch": _whole(1, 10**6),
        "floor": _maybe(_real()),
        "sm_mhz": _maybe(_whole(0, 10**6)),
        "memory_mhz": _maybe(_whole(0, 10**6)),
    },
}
"""Every field of what a record is made of."""


def check_case(record: CaseRecord, whole: bool = False) -> None:
    """Raise BaselineError for a record that no run can have written, and say which field is wrong.

    whole: it holds all contexts of its case, as a baseline does; else it may have stopped early.
    """
    for where, part in _parts(record):
        for name, (say, holds) in RULES[type(part)].items():
            if not holds(value := getattr(part, name)):
                raise _wrong(record, f"{where}{name} is {shown(value)}, not {say}")
    for problem in _relations(record, whole):
        raise _wrong(record, problem)


def _parts(record: CaseRecord) -> Iterator[tuple[str, Any]]:
    """(where it is, what) of all that a record is made of. Raises BaselineError for a part of another kind."""

    def part(name: str, kind: type, value: Any) -> Any:
        if type(value) is not kind:
            raise BaselineError(f"{name} is {shown(value)}, not a {kind.__name__}")
        return value

    yield "", part("a record", CaseRecord, record)
    yield "case: ", part("case", CaseId, record.case)
    for name, kind in (("memory", MemoryRecord), ("latency", LatencyRecord)):
        for one in getattr(record, name) if name == "latency" else [record.memory] * (record.memory is not None):
            yield f"{name}: ", part(name, kind, one)
    for at, sample in enumerate(record.samples):
        where = f"context {at}: "
        yield where, part(where, SampleRecord, sample)
        if sample.weight is not None:
            yield f"{where}weight: ", part(where, Weight, sample.weight)
        for turn in sample.turns:
            yield where, part(where, TurnRecord, turn)


def _relations(record: CaseRecord, whole: bool) -> Iterator[str]:
    """What does not fit together."""
    samples, case = record.samples, record.case
    if not samples and record.capability != COSTS:
        yield "it has no contexts"
    if not all(sample.turns for sample in samples):
        yield "a context has no turns"
    if [sample.index for sample in samples] != list(range(len(samples))):
        yield "its contexts are not 0, 1, 2, … in order, each once"
    if len(samples) > case.n or (whole and len(samples) != case.n):
        yield f"it has {len(samples)} contexts, and its name says n={case.n}"
    if "/" not in case.task and len({sample.digest for sample in samples}) < len(samples):  # rows of data sets repeat
        yield "a context is there twice"
    if record.binary and any(turn.score not in (0, 1) for sample in samples for turn in sample.turns):
        yield "a score is neither 0 nor 1, and the case is binary"
    yield from _bytes(record, whole)


def _bytes(record: CaseRecord, whole: bool) -> Iterator[str]:
    """What does not fit together in the bytes."""
    memory = record.memory
    if memory is None:
        return
    if memory.touched > memory.layers:
        yield f"memory: {memory.touched} layers of {memory.layers} took part"
    weights = [sample.weight for sample in record.samples if sample.weight is not None]
    known = len(weights) == len(record.samples)
    if not known and (weights or (whole and not memory.declared)):
        yield "its bytes depend on the text, and a context does not say what it held"
    elif weights:
        caches = sum(one.caches for one in weights)
        kv, kept = sum(one.kv for one in weights) / caches, sum(one.kept for one in weights) / caches
        if abs(kv - memory.kv_bytes) > 0.51 or abs(kept - memory.kept) > 0.011:
            yield f"memory: {memory.kv_bytes} bytes, {memory.kept:g} slots; its contexts: {kv:.0f} and {kept:.2f}"


def _wrong(record: CaseRecord, problem: str) -> BaselineError:
    return BaselineError(f"{record.case}: {problem}", "no run writes that: restore the file, or write it anew")


def shown(value: Any) -> str:
    """A value of any size and depth, cut short."""
    return reprlib.repr(value)


def strict_json(text: str) -> Any:
    """Read JSON. Raises ValueError for NaN, infinities (1e999), numbers of more than DIGITS digits, a key that is there
    twice, and nesting that nobody can follow.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_float, parse_int=_int, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _no_number(word: str) -> Any:
    raise ValueError(f"{word[:DIGITS]} is not a number that can be measured")


def _float(word: str) -> float:
    return value if math.isfinite(value := float(word)) else _no_number(word)


def _int(word: str) -> int:
    return int(word) if len(word) <= DIGITS else _no_number(f"{word[:9]}…")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shown(next(name for name in names if names.count(name) > 1))} is there twice")
    return found
