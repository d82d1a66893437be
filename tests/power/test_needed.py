"""Contexts needed, the coverage of the intervals, and looking after every block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from kvcheck.core.record import Verdict, context_score
from kvcheck.judging.budget import Budget
from kvcheck.judging.pooled import Compared
from kvcheck.power import Recorded, load
from kvcheck.power import peeking as look
from kvcheck.power.coverage import Missed, missed, truth
from kvcheck.power.judging import Judged, together
from kvcheck.power.losses import Loss
from kvcheck.power.needed import needed, smallest, spread, usual
from kvcheck.power.runs import Setup, simulate_all

FP16 = ("fp16",)


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    whole = load()
    keys = [case for case in whole.cases if case.task in ("needle", "kv", "summary") and case.length == 512]
    return replace(whole, cases=tuple(keys), methods=("fp16", "kivi", "snapkv"))


def test_the_usual_gate_needs_what_its_formula_says() -> None:
    assert usual(3.0) == 3435 == pytest.approx(2 * (1.645 + 0.842) ** 2 * 50**2 / 3**2, rel=1e-3)


def test_the_spread_after_a_loss_is_that_of_the_scores(recorded: Recorded) -> None:
    means = [context_score(one) for case in recorded.cases for one in recorded.pair("snapkv", case)[0].samples]
    mean = float(np.mean(means))
    before, after = spread(recorded, ("snapkv",), 100 * mean * 0.25)
    known = np.concatenate([np.repeat(means, 3), np.zeros(len(means))])  # one in four is lost
    assert (before, after) == pytest.approx((100 * np.std(means), 100 * known.std()))


def test_the_search_finds_the_step() -> None:
    found = smallest(lambda n: 10 if n >= 37 else 0, 10, 1000)
    assert (found.n, smallest(lambda n: 0, 10, 100).n) == (37, None)


def test_a_larger_drop_needs_fewer_contexts(recorded: Recorded) -> None:
    small = replace(recorded, cases=tuple(one for one in recorded.cases if one.task == "kv"))
    kinds = [Setup(nll=False, points=points, methods=FP16) for points in (40.0, 80.0)]
    few, many = (needed(small, one, 120, 20, 0) for one in reversed(kinds))
    assert few.n is not None
    assert many.n is not None
    assert few.n < many.n
    assert few.power.share >= 0.8


class TestCoverage:
    def coverage(self, recorded: Recorded, setup: Setup, judge=together, question: str = "budget") -> list[Missed]:
        (found,) = simulate_all(recorded, [(setup, 30)], judge=judge)
        return list(missed(recorded, setup, found, question))

    def test_the_truth_is_what_many_draws_give(self, recorded: Recorded) -> None:
        setup = Setup(own=False, nll=False, loss=Loss(0.2), methods=("snapkv",), n=200)
        (found,) = simulate_all(recorded, [(setup, 2)], judge=together)
        for scope, verdicts in found[0].judged.pooled.items():
            wanted = truth(recorded, setup, "snapkv", scope, "budget")
            assert verdicts[0].value == pytest.approx(wanted, abs=6)

    def test_the_intervals_hold_the_truth(self, recorded: Recorded) -> None:
        found = self.coverage(recorded, Setup(own=False, nll=False, loss=Loss(0.2)))
        assert {one.kind for one in found} == {"run", "capability"}
        assert not any(one.either.refuted or one.above.refuted for one in found)

    def test_those_of_nll_do_too(self, recorded: Recorded) -> None:
        found = self.coverage(recorded, Setup(own=False, budget=Budget(nll=0.05)), question="nll")
        assert found
        assert not any(one.either.refuted for one in found)

    def test_intervals_that_are_too_narrow_are_noticed(self, recorded: Recorded) -> None:
        def narrow(run: Sequence[Compared], budget: Budget, alpha: float) -> Judged:
            pooled = together(run, budget, alpha).pooled
            return Judged({}, {scope: tuple(map(about, verdicts)) for scope, verdicts in pooled.items()})

        def about(one: Verdict) -> Verdict:
            return replace(one, low=one.value - 0.1, high=one.value + 0.1)

        found = self.coverage(recorded, Setup(own=False, nll=False, loss=Loss(0.2)), narrow)
        assert all(one.either.refuted for one in found)


def test_looking_after_every_block_is_fine_and_an_impatient_judge_is_noticed(recorded: Recorded) -> None:
    def impatient(trial: Compared, budget: Budget) -> tuple[Verdict, ...]:
        """Fails at the first block whose plain mean is beyond the limit."""
        assert trial.fp16 is not None
        pairs = zip(trial.record.samples, trial.fp16.samples, strict=True)
        means = np.cumsum([a.turns[0].score < b.turns[0].score for a, b in pairs])
        beyond = any(100 * means[n - 1] / n > (budget.drop or 0) for n in range(4, len(means) + 1, 4))
        found = look.after_every_block(trial, budget)
        return tuple(replace(one, outcome="fail" if beyond else one.outcome) for one in found)

    world = next(one for one in look.worlds(recorded) if "3 %" in one.name and "right/wrong" in one.name)
    fair, hasty = (look.peek(recorded, world, 16, 30, 0, look=judge) for judge in (look.after_every_block, impatient))
    assert (fair.failed.refuted, hasty.failed.refuted) == (False, True)
