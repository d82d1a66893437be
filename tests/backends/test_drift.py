"""Drift: likelihood of the reference, agreement and divergence from the full cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from kvcheck.backends.transformers import Session, drift
from kvcheck.backends.transformers import session as session_module
from kvcheck.cache.shape import ModelShape
from kvcheck.core.record import MODES, CaseId, CaseRecord
from kvcheck.runner.case import Runner
from kvcheck.runner.seam import Drift
from kvcheck.tasks.base import Sample, Task, Turn

SNAP = "snapkv:budget=8,window=4"


@pytest.mark.parametrize("mode", MODES)
def test_fp16_has_none(runner: Runner, case: Callable[..., CaseId], mode: str) -> None:
    for sample in runner.run_case(case(mode), "fp16").samples:
        for turn in sample.turns:
            assert turn.nll is not None
            assert turn.nll > 0
            assert (turn.agree, turn.kl) == (1.0, 0.0)


@pytest.mark.parametrize("mode", MODES)
def test_a_tight_budget_drifts_and_a_loose_one_does_not(runner: Runner, case: Callable[..., CaseId], mode: str) -> None:
    tight, loose = (runner.run_case(case(mode), f"snapkv:budget={budget},window=4") for budget in (8, 400))
    for record, drifts in ((tight, True), (loose, False)):
        turns = [turn for sample in record.samples for turn in sample.turns]
        assert all(turn.kl is not None and turn.kl >= 0 and 0 <= turn.agree <= 1 for turn in turns)
        assert (max(turn.kl for turn in turns) > 1e-2) == drifts
    assert min(turn.agree for sample in loose.samples for turn in sample.turns) == 1.0


def test_it_equals_a_computation_by_hand(session: Session, runner: Runner, case: Callable[..., CaseId]) -> None:
    """In the last turn of a conversation, against the full cache with the method's own earlier answers."""
    record = runner.run_case(case("multi_turn"), SNAP)
    loaded = session.loaded
    encode = loaded.tokenizer.encode
    for recorded in record.samples:
        sample = runner.samples["toy", 1, 0, 40, recorded.index]
        rows = {}
        for spec in (SNAP, "fp16"):
            cache = session_module.find_method(spec).build(ModelShape.of(loaded.model.config))
            fed = [*loaded.tokenizer.bos, *encode(sample.context), *encode(sample.turns[0].question)]
            for turn, answered in zip(sample.turns[1:], recorded.turns, strict=False):
                with torch.inference_mode():
                    loaded.model(torch.tensor([fed]), past_key_values=cache)
                fed = encode(f" {answered.answer}") + encode(sample.separator + turn.question)
            reference = encode(" " + sample.turns[-1].references[0])
            logits = []
            for token in (None, *reference):
                fed = fed if token is None else [token]
                with torch.inference_mode():
                    logits.append(loaded.model(torch.tensor([fed]), past_key_values=cache).logits[0, -1])
            rows[spec] = torch.log_softmax(torch.stack(logits).double(), -1)
        own, full = rows[SNAP], rows["fp16"]
        got = recorded.turns[-1]
        assert got.nll == pytest.approx(-own[range(len(reference)), reference].mean().item(), abs=1e-3)
        assert got.kl == pytest.approx((full.exp() * (full - own)).sum(-1).mean().item(), abs=1e-3)
        assert got.agree == pytest.approx((full.argmax(-1) == own.argmax(-1)).double().mean().item())


def test_tokens_that_the_full_cache_rules_out_do_not_spoil_the_divergence() -> None:
    full = torch.log(torch.tensor([[0.5, 0.5, 0.0]])).expand(2, 3)
    own = torch.log(torch.tensor([[0.25, 0.5, 0.25]])).expand(2, 3)
    found, _ = drift.between((1,), full, own)
    assert found.kl == pytest.approx(0.5 * 0.6931, abs=1e-4)


def test_answers_of_one_token_drift_too_where_the_question_was_compressed_with_the_context(
    runner: Runner, case: Callable[..., CaseId], tasks: dict[str, Task]
) -> None:
    tasks["toy"] = answering(tasks["toy"], lambda turn: replace(turn, references=(turn.references[0].split()[0],)))
    turns = [turn for sample in runner.run_case(case(), SNAP).samples for turn in sample.turns]
    assert max(turn.kl for turn in turns) > 1e-2
    assert all(turn.agree >= 0.5 for turn in turns), "the first token is the full cache's own"


def test_what_has_no_target_is_left_out_of_the_likelihood() -> None:
    sure = torch.log(torch.tensor([[0.25, 0.75], [1e-6, 1 - 1e-6]]))
    found, _ = drift.between((1,), sure, sure)
    assert found.nll == pytest.approx(0.2877, abs=1e-4)


def test_the_answer_that_is_fed_is_the_one_that_earns_the_full_score(
    runner: Runner, case: Callable[..., CaseId], tasks: dict[str, Task]
) -> None:
    """`choice` grades a letter and is answered by "NAME is LETTER"; `multi_hop` grades several names."""
    plain = tasks["toy"]
    tasks["toy"] = answering(plain, lambda turn: replace(turn, references=("w1",), target=turn.references[0]))
    told = likelihoods(runner.run_case(case(), "fp16"))
    tasks["toy"] = plain
    runner.samples.clear()
    assert told == likelihoods(runner.run_case(case(), "fp16"))


def answering(task: Task, change: Callable[[Turn], Turn]) -> Task:
    """The same task with other answers."""

    def generate(*given: Any) -> Sample:
        sample = task.generate(*given)
        return replace(sample, turns=tuple(change(turn) for turn in sample.turns))

    return Task(task.info, generate)


def likelihoods(record: CaseRecord) -> list[float | None]:
    return [turn.nll for sample in record.samples for turn in sample.turns]


def test_a_turn_without_reference_has_no_drift() -> None:
    assert drift.between((), torch.zeros(1, 3), None) == (Drift(), 0.0)
