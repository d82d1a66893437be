"""What is read from a file is checked: its fields by the rules that record.py declares, and what must fit together."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Sequence
from typing import NoReturn

from kvcheck.core.errors import BaselineError
from kvcheck.core.formats import Json
from kvcheck.core.record import COSTS, CaseId, CaseRecord, LatencyRecord, MemoryRecord, SampleRecord, TurnRecord, Weight
from kvcheck.core.rules import rules

DIGITS = 25
"""Of a number in a file."""


def check_case(record: CaseRecord, complete: bool = False) -> None:
    """Raise BaselineError for a record that no run can have written, and say which field is wrong.

    complete: it holds all contexts of its case, as a baseline does; else it may have stopped early.
    """
    for where, kind, part in _parts(record):
        for name, rule in rules(kind).items():
            if not rule.allows(value := getattr(part, name)):
                raise _wrong(record, f"{where}{name} is {shown(value)}, not {rule.say}")
    for problem in _relations(record, complete):
        raise _wrong(record, problem)


def _parts(record: CaseRecord) -> Iterator[tuple[str, type, object]]:
    """(where it is, its kind, what) of all parts of a record. Raises BaselineError for a part of another kind."""

    def part(where: str, kind: type, value: object) -> tuple[str, type, object]:
        if type(value) is not kind:
            raise BaselineError(f"{where.removesuffix(': ') or 'a record'} is {shown(value)}, not a {kind.__name__}")
        return where, kind, value

    yield part("", CaseRecord, record)
    yield part("case: ", CaseId, record.case)
    if record.memory is not None:
        yield part("memory: ", MemoryRecord, record.memory)
    for one in record.latency:
        yield part("latency: ", LatencyRecord, one)
    for at, sample in enumerate(record.samples):
        where = f"context {at}: "
        yield part(where, SampleRecord, sample)
        if sample.weight is not None:
            yield part(f"{where}weight: ", Weight, sample.weight)
        for turn in sample.turns:
            yield part(where, TurnRecord, turn)


def _relations(record: CaseRecord, complete: bool) -> Iterator[str]:
    """What does not fit together."""
    samples, case = record.samples, record.case
    if not samples and record.capability != COSTS:
        yield "it has no contexts"
    if not all(sample.turns for sample in samples):
        yield "a context has no turns"
    if [sample.index for sample in samples] != list(range(len(samples))):
        yield "its contexts are not 0, 1, 2, … in order, each once"
    if len(samples) > case.n or (complete and len(samples) != case.n):
        yield f"it has {len(samples)} contexts, and its name says n={case.n}"
    if "/" not in case.task and len({sample.digest for sample in samples}) < len(samples):  # rows of data sets repeat
        yield "a context is there twice"
    if record.binary and any(turn.score not in (0, 1) for sample in samples for turn in sample.turns):
        yield "a score is neither 0 nor 1, and the case is binary"
    yield from _bytes(record, complete)


def _bytes(record: CaseRecord, complete: bool) -> Iterator[str]:
    """What does not fit together in the bytes."""
    memory = record.memory
    if memory is None:
        return
    end = (memory.end_kv_bytes, memory.end_dense_bytes, memory.end_host_bytes, memory.end_seen)
    if len({value is None for value in end}) > 1:
        yield "memory: of what was held after decoding a part is missing"
    if memory.touched > memory.layers:
        yield f"memory: {memory.touched} layers of {memory.layers} took part"
    weights = [sample.weight for sample in record.samples if sample.weight is not None]
    known = len(weights) == len(record.samples)
    if not known and (weights or (complete and not memory.declared)):
        yield "its bytes depend on the text, and a context does not say what it held"
    elif weights:
        caches = sum(one.caches for one in weights)
        kv, kept = sum(one.kv for one in weights) / caches, sum(one.kept for one in weights) / caches
        if abs(kv - memory.kv_bytes) > 0.51 or abs(kept - memory.kept) > 0.011:
            yield f"memory: {memory.kv_bytes} bytes, {memory.kept:g} slots; its contexts: {kv:.0f} and {kept:.2f}"
        yield from _ends(memory, weights)


def _ends(memory: MemoryRecord, weights: Sequence[Weight]) -> Iterator[str]:
    """The same of the bytes after decoding."""
    ends = sum(one.ends for one in weights)
    if bool(ends) != (memory.end_kv_bytes is not None):
        yield "memory: what was held after decoding is known of the case or of its contexts, not of both"
    elif ends and memory.end_kv_bytes is not None:
        kv = sum(one.end_kv for one in weights) / ends
        if abs(kv - memory.end_kv_bytes) > 0.51:
            yield f"memory: {memory.end_kv_bytes} bytes after decoding; its contexts: {kv:.0f}"


def _wrong(record: CaseRecord, problem: str) -> BaselineError:
    return BaselineError(f"{record.case}: {problem}", "no run writes that: restore the file, or write it anew")


def shown(value: object) -> str:
    """A value of any size and depth, cut short."""
    return reprlib.repr(value)


def strict_json(text: str) -> Json:
    """Read JSON. Raises ValueError for NaN, infinities (1e999), numbers of more than DIGITS digits, a key that is there
    twice, and nesting that nobody can follow.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_float, parse_int=_int, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word[:DIGITS]} is not a number that can be measured")


def _float(word: str) -> float:
    return value if math.isfinite(value := float(word)) else _no_number(word)


def _int(word: str) -> int:
    return int(word) if len(word) <= DIGITS else _no_number(f"{word[:9]}…")


def _once(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shown(next(name for name in names if names.count(name) > 1))} is there twice")
    return found
