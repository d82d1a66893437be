"""Whole simulated runs: the noise does what it says, and the check notices a judge that keeps no promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvcheck.core.record import CaseRecord, TurnRecord, Verdict
from kvcheck.judging.questions import drop_interval
from kvcheck.power import IDENTICAL, ONE_WAY, Noise, Recorded, load
from kvcheck.power.judging import Trial, as_a_run_does, failures, remembering
from kvcheck.power.noise import Loss
from kvcheck.power.rates import Rate
from kvcheck.power.resample import draw
from kvcheck.power.runs import Setup, simulate, simulate_all

NOISY = Noise("noisy", flips=0.1, jitter=0.002)


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    """A few cases of three methods, so that a run takes a moment."""
    whole = load()
    keys = [case for case in whole.cases if case.task in ("needle", "kv", "summary") and case.length == 512]
    return replace(whole, cases=tuple(keys), methods=("fp16", "kivi", "snapkv"))


def hasty(trial: Trial) -> tuple[Verdict, ...]:
    """A judge without statistics: any loss against its own record is a failure."""
    found = as_a_run_does(trial)
    return tuple(
        replace(one, outcome="fail") if one.question == "regression" and one.value > 0 else one for one in found
    )


def scores(record: CaseRecord) -> list[float]:
    return [turn.score for sample in record.samples for turn in sample.turns]


def test_an_identical_rerun_never_fails(recorded: Recorded) -> None:
    assert not any(one.failed for one in simulate_all(recorded, Setup(IDENTICAL), 6))


def test_the_check_notices_a_judge_without_statistics(recorded: Recorded) -> None:
    found = simulate_all(recorded, Setup(NOISY), 12, judge=hasty)
    rate = Rate(sum(bool(one.failed) for one in found), len(found), 0.05)
    assert (rate.refuted, rate.verdict) == (True, "BROKEN")


def test_the_real_judge_stands_the_same_noise(recorded: Recorded) -> None:
    found = simulate_all(recorded, Setup(NOISY), 12)
    assert not Rate(sum(bool(one.failed) for one in found), len(found), 0.05).refuted


def test_a_broken_method_fails_every_run(recorded: Recorded) -> None:
    assert all(one.failed for one in simulate_all(recorded, Setup(IDENTICAL, points=60.0), 3))


def test_the_same_seed_gives_the_same_run_in_any_process(recorded: Recorded) -> None:
    setup = Setup(NOISY, points=10.0)
    here, there = (simulate_all(recorded, setup, 12, 3, jobs=jobs) for jobs in (1, 2))
    assert here == there
    assert here[5] == simulate(recorded, setup, 5, 3)


def test_another_seed_gives_other_contexts(recorded: Recorded) -> None:
    case = recorded.cases[0]
    one, two = (draw(case, *recorded.pair("kivi", case), np.random.default_rng(seed))[0] for seed in (1, 2))
    assert [sample.digest for sample in one.samples] != [sample.digest for sample in two.samples]


def test_a_draw_keeps_the_method_and_fp16_on_the_same_contexts(recorded: Recorded) -> None:
    case = recorded.cases[0]
    own, fp16 = draw(case, *recorded.pair("kivi", case), np.random.default_rng(0))
    assert [(one.index, one.digest) for one in own.samples] == [(one.index, one.digest) for one in fp16.samples]
    assert len(own.samples) == case.n


def test_flips_turn_over_the_share_they_say(recorded: Recorded) -> None:
    rng, changed, total = np.random.default_rng(0), 0, 0
    for case in recorded.cases * 5:
        own, _ = recorded.pair("snapkv", case)
        pairs = list(zip(scores(own), scores(NOISY.apply(own, rng)), strict=True))
        changed, total = changed + sum(a != b for a, b in pairs), total + len(pairs)
    assert changed / total == pytest.approx(0.1, abs=0.03)


def test_one_way_noise_only_loses(recorded: Recorded) -> None:
    own, _ = recorded.pair("snapkv", recorded.cases[0])
    noisy = replace(ONE_WAY, flips=1.0).apply(own, np.random.default_rng(0))
    assert all(now <= then for now, then in zip(scores(noisy), scores(own), strict=True))


@pytest.mark.parametrize(("rises", "nll"), [((2.0,), 2.1), ((), 0.1), (None, None)])
def test_a_loss_takes_all_answers_and_moves_their_nll(recorded: Recorded, rises, nll) -> None:
    own, _ = recorded.pair("fp16", recorded.cases[0])
    sample = replace(own.samples[0], turns=(TurnRecord(1.0, "yes", nll=0.1),))
    lost = Loss(1.0, rises).apply(replace(own, samples=(sample,)), np.random.default_rng(0)).samples[0].turns[0]
    assert (lost.score, lost.nll) == (0.0, pytest.approx(nll) if nll is not None else None)


def test_remembering_changes_no_number(recorded: Recorded) -> None:
    case = recorded.cases[0]
    own, fp16 = recorded.pair("snapkv", case)
    pairs = list(zip(own.samples, fp16.samples, strict=True))
    plain = drop_interval(own, fp16, pairs, 0.01)
    with remembering():
        found = [drop_interval(own, fp16, pairs, 0.01) for _ in range(2)]
    assert found == [plain, plain]


def test_a_run_stops_early_where_the_verdict_is_clear(recorded: Recorded) -> None:
    case = next(case for case in recorded.cases if case.task == "needle")
    own, fp16 = draw(replace(case, n=64), *recorded.pair("fp16", case), np.random.default_rng(0))
    lost = Loss(1.0, None).apply(own, np.random.default_rng(0))
    verdicts = as_a_run_does(Trial(lost, fp16, own, recorded.budget("fp16", own.capability), 0.05))
    assert failures(verdicts)
    assert verdicts[0].n < 64


def test_a_rate_knows_its_exact_interval() -> None:
    assert Rate(0, 1000, 0.05).interval == pytest.approx((0.0, 0.0037), abs=1e-4)
    assert [Rate(count, 100, 0.05).verdict for count in (0, 4, 20)] == ["holds", "not refuted", "BROKEN"]
    assert Rate(3, 10).verdict == ""
