"""Generic faults around a method: each changes what it says, and some property sees it."""

from __future__ import annotations

import pytest

from kvcheck.conformance.runner import examine
from kvcheck.record import FAILS
from kvcheck.zoo.hunt import suspects
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
    "NeverActs": "memory_is_freed_in_every_row_of_every_sample",
}


@pytest.mark.parametrize("name", SEEN_BY)
def test_a_property_sees_the_fault_around_snapkv(name):
    spec = dict(mutants("snapkv:budget=0.5,window=8"))[name]
    assert examine(SEEN_BY[name], spec, 12).outcome == FAILS


def test_every_fault_is_tried():
    assert [fault.__name__ for fault in FAULTS] == list(SEEN_BY)


def test_a_method_that_frees_nothing_cannot_fail_to_act():
    assert "NeverActs" not in dict(mutants("save_load"))


def test_the_suspects_of_a_method_of_ones_own_are_its_mutants_and_itself():
    found = list(suspects(("all",), ("snapkv",)))
    assert [one.name for one in found[:1] + found[-1:]] == ["LostTail in snapkv", "snapkv"]
    assert [one.correct for one in found] == [False] * len(FAULTS) + [True]
