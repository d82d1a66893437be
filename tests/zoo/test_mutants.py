"""Generic faults around a method: each changes what it says, and some property sees it."""

from __future__ import annotations

import pytest
import torch
from tiny import runner_of

from kvcheck.conformance.runner import examine
from kvcheck.core.errors import MethodFailed, MethodUnsupported, SpecError
from kvcheck.core.record import FAILS, CaseId
from kvcheck.methods import make
from kvcheck.zoo.evaluate import candidates
from kvcheck.zoo.mutants import FAULTS, mutants

SEEN_BY = {
    "LostTail": "everything_held_is_the_full_cache",
    "LostHead": "everything_held_is_the_full_cache",
    "SkippedSample": "a_row_of_a_batch_is_as_alone",
    "StaleState": "a_sample_does_not_depend_on_those_before_it",
    "WrongPosition": "a_token_is_fed_at_its_position",
    "ForgottenAnswer": "the_newest_token_is_seen",
    "RepeatedToken": "a_block_is_its_tokens_one_by_one",
    "SwappedHeads": "a_slot_holds_the_token_of_its_position",
    "NoisyValues": "a_slot_holds_the_token_of_its_position",
    "OffByOneMask": "everything_held_is_the_full_cache",
    "NeverActs": "memory_is_freed_in_every_row_of_every_sample",
}


@pytest.mark.parametrize("name", SEEN_BY)
def test_a_property_sees_the_fault_around_snapkv(name):
    spec = dict(mutants("snapkv:budget=0.5,window=8"))[name]
    assert examine(SEEN_BY[name], spec, 12).outcome == FAILS


@pytest.mark.parametrize("fault", [each for each in SEEN_BY if each != "NeverActs"])
def test_the_fault_reaches_the_tasks(fault, embedded):
    case = CaseId("kv", 1, "multi_turn", 256, 0, 2)
    runner = runner_of(embedded)
    wrong = dict(mutants("snapkv:budget=0.5"))[fault]
    try:
        found = losses(runner.run_case(case, wrong))
    except MethodFailed:  # by what it declares of itself
        return
    assert found != losses(runner.run_case(case, "snapkv:budget=0.5"))


def losses(record):
    return [turn.nll for sample in record.samples for turn in sample.turns]


@pytest.mark.parametrize("spec", ["flexgen", "fp8", "kivi", "transformers.dynamic"])
def test_values_of_a_prompt_can_be_wrong_under_every_method(spec, embedded):
    tokens = torch.arange(40)[None] + 50
    right = make(spec).runner(embedded).prefill(tokens)[1]
    wrong = make(dict(mutants(spec))["SwappedHeads"]).runner(embedded).prefill(tokens)[1]
    assert not torch.equal(right, wrong)


@pytest.mark.parametrize("spec", ["quest", "kivi", "corm", "transformers.dynamic"])
def test_a_mask_is_not_shifted_where_a_method_attends_in_a_way_of_its_own(spec, embedded):
    with pytest.raises(MethodUnsupported, match="attends in a way of its own"):
        make(dict(mutants(spec))["OffByOneMask"]).runner(embedded)


def test_bugs_of_the_zoo_are_not_asked_for_beside_a_method():
    with pytest.raises(SpecError, match="cannot be put around a method of your own"):
        list(candidates(("beam",), ("snapkv",)))


def test_every_fault_is_tried():
    assert [fault.__name__ for fault in FAULTS] == list(SEEN_BY)


def test_a_method_that_frees_nothing_cannot_fail_to_act():
    assert "NeverActs" not in dict(mutants("save_load"))


def test_the_candidates_of_a_method_of_ones_own_are_its_mutants_and_itself():
    found = list(candidates(("all",), ("snapkv",)))
    assert [one.name for one in found[:1] + found[-1:]] == ["LostTail in snapkv", "snapkv"]
    assert [one.correct for one in found] == [False] * len(FAULTS) + [True]
