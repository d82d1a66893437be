"""KL from the full cache is evidence: against the method's own record, and where a method calls itself lossless."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from building import fp16, memory, record

from kvcheck.cache.method import Lossless, MethodInfo
from kvcheck.core.errors import BaselineError
from kvcheck.core.record import RUN, CaseRecord, Verdict
from kvcheck.judging import limits
from kvcheck.judging.asked import compared
from kvcheck.judging.budget import Budget
from kvcheck.judging.pooled import Compared, judge_pooled
from kvcheck.methods import make

NO_BUDGET = Budget(drop=None)
CONTEXTS = 24
KL = [0.01 * (1 + at % 3) for at in range(CONTEXTS)]
"""0.02 nats in the mean."""


def far(kl: Sequence[float | None], claims: str = "") -> CaseRecord:
    """Right answers, so far from the full cache."""
    made = record([1.0] * len(kl), held=replace(memory(), claims=claims))
    samples = (
        replace(one, turns=(replace(one.turns[0], kl=value),)) for one, value in zip(made.samples, kl, strict=True)
    )
    return replace(made, samples=tuple(samples))


def against_own(now: Sequence[float | None], then: Sequence[float | None]) -> list[Verdict]:
    found = judge_pooled([Compared(far(now), None, far(then))], NO_BUDGET, 0.05)
    return [one for one in found[RUN] if one.question == "divergence"]


def test_twice_the_recorded_distance_fails_though_every_answer_is_right() -> None:
    (verdict,) = against_own([2 * kl for kl in KL], KL)
    assert verdict.outcome == "fail"
    assert verdict.value == pytest.approx(0.04)
    assert verdict.limit == pytest.approx(1.5 * 0.02 + 0.001)
    assert verdict.limit < verdict.low < verdict.value < verdict.high


def test_what_other_hardware_makes_of_it_passes() -> None:
    noise = [1.1, 0.9, 1.05, 0.95]
    (verdict,) = against_own([kl * noise[at % 4] for at, kl in enumerate(KL)], KL)
    assert verdict.outcome == "pass"


def test_turns_that_move_up_and_down_by_a_few_percent_are_as_recorded() -> None:
    noise = [1.03, 0.97]
    (verdict,) = against_own([kl * noise[at % 2] for at, kl in enumerate(KL)], KL)
    assert verdict.reason == "as recorded"


def test_the_same_mean_of_other_contexts_does_not_pass_where_the_interval_holds_the_limit() -> None:
    spread = [3.9, 0.03, 0.03, 0.04]
    (verdict,) = against_own([kl * spread[at % 4] for at, kl in enumerate(KL)], KL)
    assert verdict.value < verdict.limit < verdict.high
    assert (verdict.outcome, verdict.reason == "as recorded") == ("inconclusive", False)


def test_a_mean_that_moves_by_a_tenth_is_not_as_recorded() -> None:
    (verdict,) = against_own([1.1 * kl for kl in KL], KL)
    assert verdict.outcome == "pass"
    assert verdict.reason != "as recorded"


def test_the_same_distance_passes_with_the_few_contexts_of_one_case() -> None:
    (verdict,) = against_own(KL[:4], KL[:4])
    assert (verdict.outcome, verdict.reason) == ("pass", "as recorded")


def test_what_rounding_moves_is_no_distance() -> None:
    (verdict,) = against_own([0.0009] * CONTEXTS, [0.0] * CONTEXTS)
    assert verdict.outcome == "pass"


def test_where_the_record_has_no_distance_nothing_is_said() -> None:
    assert against_own(KL, [None] * CONTEXTS) == []


def held_to(kl: float, limit: float | None) -> list[Verdict]:
    mine = [kl * (0.9 + 0.2 * (at % 2)) for at in range(CONTEXTS)]
    found = judge_pooled([Compared(far(mine), fp16(CONTEXTS), None, drop=False, lossless=limit)], NO_BUDGET, 0.05)
    return [one for one in found.get(RUN, ()) if one.question == "lossless"]


def test_a_method_that_calls_itself_nearly_lossless_and_is_far_fails() -> None:
    (verdict,) = held_to(0.03, 0.01)
    assert (verdict.outcome, verdict.limit) == ("fail", 0.01)


def test_a_method_that_is_as_near_as_it_says_passes() -> None:
    (verdict,) = held_to(0.005, 0.01)
    assert verdict.outcome == "pass"


def test_a_method_that_claims_nothing_is_not_asked() -> None:
    assert held_to(0.03, None) == []


MINE = limits.Limits("f00d", lossless=0.001, nearly=0.01, tasks=("kv",))


def of(claims: str, **changed: object) -> float | None:
    return MINE.of(replace(far(KL, claims), **{"model": "f00d", **changed}))  # type: ignore[arg-type]


def test_a_limit_is_that_of_what_is_claimed() -> None:
    assert (of("frees,lossless"), of("frees,nearly"), of("frees")) == (0.001, 0.01, None)


def test_a_limit_is_of_one_model_and_its_tasks() -> None:
    assert of("nearly", model="beef") is None
    other = far(KL).case
    assert of("nearly", case=replace(other, task="needle")) is None


def test_the_gate_asks_it_of_the_models_that_ship(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "shipped", lambda: (MINE,))
    mine = replace(far(KL, "nearly"), model="f00d")
    assert compared(mine, fp16(CONTEXTS), None, NO_BUDGET, "both").lossless == 0.01


def test_the_limits_that_ship_are_those_of_named_models() -> None:
    found = limits.shipped()
    assert {one.fingerprint for one in found} == {"96ca7cf823d4c767", "5cacc894347e1310"}
    assert all(one.lossless == 0.001 for one in found)


def test_a_damaged_file_of_limits_is_named(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text('[mini]\nfingerprint = "f00d"\nmost = 3\n')
    with pytest.raises(BaselineError, match=r"limits\.toml cannot be read"):
        limits.read(file)


@pytest.mark.parametrize(
    ("spec", "claims"),
    [("fp8", {"nearly"}), ("kivi:bits=4", {"nearly"}), ("kivi", set()), ("offload", {"lossless"}), ("snapkv", set())],
)
def test_methods_say_how_near_they_are_with_their_parameters(spec: str, claims: set[str]) -> None:
    assert set(make(spec).claims()) - {"frees", "exceeds"} == claims


def test_what_is_no_lossless_is_refused() -> None:
    with pytest.raises(Exception, match="nearly='always' is no Lossless"):
        MethodInfo(summary="x", stage="compression", nearly="always")  # type: ignore[arg-type]
    assert MethodInfo(summary="x", stage="compression", nearly=Lossless.ALWAYS).nearly == Lossless.ALWAYS
