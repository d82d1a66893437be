"""A method that holds fewer bytes, or claims to, must be seen to act."""

from __future__ import annotations

from dataclasses import replace

import pytest
from building import fp16, memory, record

from kvcheck.core.record import IDLE, CaseRecord
from kvcheck.judging.acted import ROUNDING, judge_acted


def case(kv: int = 1000, apart: float | None = 0.0002, claims: str | None = "", **more: int) -> CaseRecord:
    """Four contexts with fp16's answers, of 1,000 bytes in fp16's cache. more: of the bytes."""
    return record([1.0] * 4, "mine", held=replace(memory(kv), apart=apart, claims=claims, **more))


def judged(*cases: CaseRecord) -> str:
    """The outcome, "" where there is no verdict."""
    found = judge_acted([(one, fp16(4)) for one in cases])
    return "" if found is None else found.outcome


@pytest.mark.parametrize("kv", [30, 500, 980])
def test_the_logits_of_the_full_cache_at_fewer_bytes_fail(kv: int) -> None:
    found = judge_acted([(case(kv), None), (case(kv), None)])
    assert found is not None
    assert (found.question, found.outcome, found.n, found.value) == ("acted", "fail", 8, kv / 1000)
    assert "in all of 8 contexts" in found.reason


def test_one_case_with_other_logits_is_enough() -> None:
    assert judged(case(500), case(500, apart=2 * ROUNDING), case(500)) == ""


def test_cases_that_hold_everything_excuse_none_that_hold_less() -> None:
    assert judged(case(1000, apart=0.3), case(500)) == "fail"


def test_bytes_in_host_memory_are_held() -> None:
    assert judged(case(0, claims="frees,lossless", host_bytes=1000)) == ""
    assert judged(case(0, claims="frees", host_bytes=1000)) == ""
    assert judged(case(0, claims="frees", host_bytes=500)) == "fail"


def test_a_code_that_declares_to_lose_nothing_may_hold_less_but_not_half() -> None:
    assert judged(case(700, claims="lossless")) == ""
    assert judged(case(400, claims="lossless")) == "fail"


def test_a_method_that_claims_to_free_memory_and_changes_nothing_fails() -> None:
    found = judge_acted([(case(claims="frees"), fp16(4))])
    assert found is not None
    assert (found.outcome, found.value) == ("fail", 1.0)
    assert "claims to hold less than fp16 and changes nothing" in found.reason


def test_it_may_have_had_nothing_to_do() -> None:
    assert judged(replace(case(claims="frees"), not_measured=((IDLE, "short"),))) == ""


def test_or_may_act_while_decoding_only() -> None:
    ends = {"end_kv_bytes": 900, "end_dense_bytes": 1100, "end_host_bytes": 0, "end_seen": 110}
    assert judged(case(claims="frees", **ends)) == ""


def test_other_answers_show_that_it_acts() -> None:
    mine = case(claims="frees")
    other = replace(mine.samples[0], turns=(replace(mine.samples[0].turns[0], answer="another"),))
    assert judged(replace(mine, samples=(other, *mine.samples[1:]))) == ""


def test_a_method_that_claims_nothing_and_changes_nothing_is_noticed_and_passes() -> None:
    found = judge_acted([(case(), fp16(4))])
    assert found is not None
    assert found.outcome == "pass"
    assert "it is fp16 by all that was measured" in found.reason


@pytest.mark.parametrize(
    "quiet",
    [
        pytest.param(case(claims="lossless"), id="it says so"),
        pytest.param(case(claims=None), id="a record of before"),
        pytest.param(case(500, apart=None), id="logits were not measured"),
        pytest.param(replace(case(500), memory=None), id="bytes were not measured"),
        pytest.param(replace(case(500), method="fp16"), id="fp16"),
    ],
)
def test_nothing_is_said_of_what_is_declared_or_not_known(quiet: CaseRecord) -> None:
    assert judged(quiet) == ""
