"""What a record may hold: every field has a rule, and every rule refuses what no run writes."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
from building import fp16, memory, record

from kvcheck.core.errors import BaselineError
from kvcheck.core.record import (
    CaseId,
    CaseRecord,
    LatencyRecord,
    MemoryRecord,
    SampleRecord,
    TurnRecord,
    Weight,
    cost_case,
    cost_record,
)
from kvcheck.core.rules import rules
from kvcheck.store.validate import check_case, strict_json

ENDS = {"end_kv_bytes": 600, "end_dense_bytes": 1100, "end_host_bytes": 0, "end_seen": 110}


def rich() -> CaseRecord:
    """A record with everything in it."""
    mine = record([1.0, 0.0, 1.0, 0.0], nll=0.5)
    more = {"fed": "a" * 12, "graded": "b" * 12}
    weights = [Weight(500 + 4 * at, 50.0, end_kv=600, ends=1) for at in range(4)]
    samples = [replace(one, weight=weight, **more) for one, weight in zip(mine.samples, weights, strict=True)]
    return replace(
        mine,
        samples=tuple(samples),
        memory=replace(memory(506), declared=False, claims="frees", **ENDS),
        latency=(LatencyRecord("ttft", 1024, 0.1, 0.2, 0.5, 0.4, 0.6, 9, floor=0.01, sm_mhz=1000),),
        not_measured=(("kl", "no fp16"),),
        switches=(("data", "rev"),),
        inputs=(("tokenizers", "0.22.1"),),
    )


def turned(mine: CaseRecord, at: int = 0, **changes: Any) -> CaseRecord:
    """The record with the first turn of one context changed."""
    samples = list(mine.samples)
    samples[at] = replace(samples[at], turns=(replace(samples[at].turns[0], **changes), *samples[at].turns[1:]))
    return replace(mine, samples=tuple(samples))


PARTS = {CaseRecord: {"case", "samples", "memory", "latency"}, SampleRecord: {"turns", "weight"}}
"""Fields that are records themselves."""


@pytest.mark.parametrize(
    "kind",
    [CaseId, CaseRecord, SampleRecord, TurnRecord, MemoryRecord, Weight, LatencyRecord],
    ids=lambda kind: kind.__name__,
)
def test_every_field_has_a_rule(kind: type) -> None:
    assert rules(kind).keys() == {field.name for field in fields(kind)} - PARTS.get(kind, set())


@pytest.mark.parametrize(
    "good", [rich(), fp16(), record([[1.0, 0.5]]), cost_record("fp16", "f00d", cost_case(512), memory(), ())]
)
def test_what_a_run_writes_passes(good: CaseRecord) -> None:
    check_case(good)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("score", [-0.1, 1.1, math.nan, math.inf, "1", None, True, 10**400]),
        ("answer", [None, 3, "x" * 1_000_001]),
        ("subtask", [None, 3]),
        ("depth", [-0.1, 1.1, math.nan, "x"]),
        ("nll", [-0.001, 1e300, math.nan, math.inf, "x", 10**400]),
        ("agree", [-0.1, 1.1, math.nan]),
        ("kl", [-0.1, 1e9, math.nan]),
    ],
)
def test_a_turn_with_a_value_out_of_range_is_refused_by_its_field(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(BaselineError, match=f"context 0: {field} is "):
            check_case(turned(rich(), **{field: value}))


@pytest.mark.parametrize("field", [field.name for field in fields(MemoryRecord) if field.name != "declared"])
@pytest.mark.parametrize("value", [-1, "x", math.nan, math.inf, 10**400, True, [[[]]]])
def test_memory_out_of_range_is_refused_by_its_field(field: str, value: Any) -> None:
    with pytest.raises(BaselineError, match=f"memory: {field} is "):
        check_case(replace(rich(), memory=replace(rich().memory, **{field: value})))


@pytest.mark.parametrize("field", [field.name for field in fields(LatencyRecord)])
@pytest.mark.parametrize("value", [-1, "x", math.nan, math.inf, 10**400, True])
def test_latency_out_of_range_is_refused_by_its_field(field: str, value: Any) -> None:
    with pytest.raises(BaselineError, match=f"latency: {field} is "):
        check_case(replace(rich(), latency=(replace(rich().latency[0], **{field: value}),)))


@pytest.mark.parametrize("field", [field.name for field in fields(Weight)])
def test_a_weight_out_of_range_is_refused_by_its_field(field: str) -> None:
    samples = rich().samples
    wrong = replace(samples[0], weight=replace(samples[0].weight, **{field: -1}))
    with pytest.raises(BaselineError, match=f"weight: {field} is -1"):
        check_case(replace(rich(), samples=(wrong, *samples[1:])))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chance": math.nan}, "chance is nan"),
        ({"capability": "magic"}, "capability is 'magic'"),
        ({"query_aware": 1}, "query_aware is 1"),
        ({"binary": None}, "binary is None"),
        ({"model": ""}, "model is ''"),
        ({"method": 7}, "method is 7"),
        ({"stopped": ""}, "stopped is ''"),
        ({"not_measured": (("kl",),)}, "not_measured is "),
        ({"switches": (("a", "1"), ("a", "2"))}, "switches is "),
        ({"memory": {"kv_bytes": 1}}, "memory is .*not a MemoryRecord"),
        ({"samples": ()}, "it has no contexts"),
    ],
)
def test_a_case_with_a_wrong_field_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BaselineError, match=words):
        check_case(replace(rich(), **change))


@pytest.mark.parametrize(
    ("order", "words"),
    [([0, 1, 1, 3], "in order, each once"), ([1, 0, 2, 3], "in order, each once"), ([0, 1, 3], "in order, each once")],
)
def test_contexts_that_are_missing_doubled_or_out_of_order_are_refused(order: list[int], words: str) -> None:
    mine = rich()
    with pytest.raises(BaselineError, match=words):
        check_case(replace(mine, samples=tuple(mine.samples[at] for at in order)))


def test_a_context_that_is_there_twice_under_two_indices_is_refused() -> None:
    first, _, *rest = rich().samples
    with pytest.raises(BaselineError, match="a context is there twice"):
        check_case(replace(rich(), samples=(first, replace(first, index=1), *rest)))


def test_more_contexts_than_the_case_says_are_refused_and_fewer_where_it_must_be_whole() -> None:
    mine = rich()
    short = replace(mine, samples=mine.samples[:3], memory=replace(mine.memory, kv_bytes=504))
    check_case(short)
    with pytest.raises(BaselineError, match="it has 3 contexts, and its name says n=4"):
        check_case(short, complete=True)
    with pytest.raises(BaselineError, match="n=2"):
        check_case(replace(mine, case=replace(mine.case, n=2)))


def test_a_score_between_right_and_wrong_of_a_binary_task_is_refused() -> None:
    with pytest.raises(BaselineError, match="neither 0 nor 1"):
        check_case(turned(rich(), score=0.5))


def test_bytes_that_are_not_the_mean_of_the_contexts_are_refused() -> None:
    with pytest.raises(BaselineError, match="700 bytes"):
        check_case(replace(rich(), memory=replace(rich().memory, kv_bytes=700)))


def test_a_part_of_another_kind_is_refused() -> None:
    with pytest.raises(BaselineError, match="not a TurnRecord"):
        check_case(replace(rich(), samples=(replace(rich().samples[0], turns=((1, "a"),)), *rich().samples[1:])))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("1e999", "is not a number"),
        ("-Infinity", "is not a number"),
        ("NaN", "is not a number"),
        ("9" * 400, "is not a number"),
        ("9" * 5000, "is not a number"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
    ],
)
def test_json_that_nobody_writes_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        strict_json(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"end_kv_bytes": 700}, "700 bytes after decoding; its contexts: 600"),
        ({"end_seen": None}, "of what was held after decoding a part is missing"),
        (dict.fromkeys(ENDS), "of the case or of its contexts, not of both"),
    ],
)
def test_bytes_after_decoding_must_fit_together(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BaselineError, match=words):
        check_case(replace(rich(), memory=replace(rich().memory, **change)))
