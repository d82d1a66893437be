"""A foreign cache is driven as one batch by its own verbs, at the positions that follow from its own length."""

from __future__ import annotations

import pytest

from kvcheck.conformance.runner import check
from kvcheck.conformance.subject import NotServed, Violation

BEAMS = "beams_that_are_reordered_go_on_as_their_parents"
IN_PLACE = "rows_can_be_repeated_and_taken_out_in_place"
RESET = "a_reset_cache_is_as_a_fresh_one"
TAKEN_BACK = "what_is_taken_back_was_never_there"
LENGTH = "the_length_of_a_cache_is_the_tokens_seen"
POSITION = "a_token_is_fed_at_its_position"
ALONE = "a_row_of_a_batch_is_as_alone"
PADDED = "rows_padded_on_the_left_answer_as_alone"
GENERATE = "generate_answers_as_tokens_fed_by_hand"
DRAFTS = "verified_drafts_are_the_tokens_of_generate"
EARLY = "rows_that_finish_early_leave_the_others_alone"
VERBS = (BEAMS, IN_PLACE, RESET, TAKEN_BACK, LENGTH, POSITION, ALONE, PADDED, GENERATE, DRAFTS, EARLY)
SIZES = {"prompt": 45, "block": 3, "steps": 2, "rows": 2, "cut": 500}


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize(
    "cache", ["other_caches.Right", "other_caches.RightCache", "transformers.sliding_window:window=24"]
)
def test_the_verbs_of_a_correct_cache_hold(cache, name):
    try:
        check(name, cache, **SIZES)
    except NotServed:
        assert cache.startswith("transformers.sliding_window")  # which keeps less than it is fed


@pytest.mark.parametrize(
    ("cache", "name"),
    [
        ("ReorderKeysOnly", BEAMS),
        ("ReorderNothing", BEAMS),
        ("RepeatTiles", IN_PLACE),
        ("SelectKeysTwice", IN_PLACE),
        ("SelectKeysTwice", EARLY),
        ("ResetNothing", RESET),
        ("CropsFromTheFront", TAKEN_BACK),
        ("CropsFromTheFront", DRAFTS),
        ("LengthOfSlots", LENGTH),
        ("LengthOfSlots", POSITION),
        ("LengthOfSlots", GENERATE),
        ("NarrowMasks", LENGTH),
        ("ScaledByTheBatch", ALONE),
        ("RowZeroForAll", ALONE),
    ],
)
def test_a_verb_that_is_at_fault_is_accused(cache, name):
    with pytest.raises(Violation):
        check(name, f"other_caches.{cache}", **SIZES)


@pytest.mark.parametrize(
    ("cache", "name", "reason"),
    [
        ("OneRowOnly", BEAMS, "it knows no batch of rows: RuntimeError: one sequence at a time"),
        ("OneRowOnly", ALONE, "it knows no batch of rows"),
        ("WithoutVerbs", BEAMS, "it refuses reorder_cache: no beams here"),
        ("WithoutVerbs", RESET, "it refuses reset: make a new one"),
        ("InADictionary", BEAMS, "no reorder_cache of its own, and keeps nothing in `layers`"),
        ("InADictionary", RESET, "no reset of its own"),
    ],
)
def test_what_cannot_be_driven_could_not_be_tried(cache, name, reason):
    with pytest.raises(NotServed, match=reason):
        check(name, f"other_caches.{cache}", **SIZES)


def test_a_batch_of_one_row_is_none():
    with pytest.raises(NotServed, match="it knows no batch of rows"):
        check(ALONE, "other_caches.OneRowOnly", **{**SIZES, "rows": 1})
