"""What goes into a foreign cache, what it holds of it and what it reads back are looked at, whatever it declares."""

from __future__ import annotations

import pytest

from kvcheck.conformance.runner import check
from kvcheck.conformance.subject import NotServed, Violation

FAULTS = {
    "everything_held_is_the_full_cache": "ReadsNegative",
    "the_prompt_is_read_as_by_the_full_cache": "ReadsNegative",
    "a_prompt_in_two_chunks_is_the_prompt": "ForgetsInBlocks",
    "a_prompt_and_what_follows_are_one_text": "ForgetsInBlocks",
    "a_later_token_of_the_prompt_never_changes_earlier_logits": "LooksAhead",
    "what_every_query_asks_for_is_found": "ReadsNegative",
    "a_slot_holds_the_token_of_its_position": "OtherHeads",
    "slots_stay_true_while_decoding": "RollsWhileDecoding",
    "what_is_kept_follows_from_the_tokens_seen": "HoldsTheNewestTwice",
    "bytes_are_as_declared": "HoldsTwice",
    "bytes_stay_as_declared_in_long_decoding": "HoldsTwice",
    "a_block_takes_the_bytes_of_its_tokens": "HoardsBlocks",
    "a_fork_holds_what_its_rows_need": "KeepsTheBatch",
    "what_is_read_back_is_as_near_as_promised": "ReadsNegative",
    "what_is_decoded_is_read_back_as_near_as_promised": "ReadsNegative",
    "the_size_of_numbers_does_not_matter": "Rounded",
    "what_was_read_back_is_stored_without_loss": "Fades",
}
"""By property, a cache of other_caches that breaks it."""
SIZES = {"prompt": 24, "block": 3, "steps": 2, "rows": 2, "cut": 500}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_in_a_cache_that_declares_nothing(name):
    with pytest.raises(Violation):
        check(name, f"other_caches.{FAULTS[name]}", **SIZES)


@pytest.mark.parametrize("name", [*FAULTS, "an_absorbed_prompt_is_the_prompt"])
def test_a_full_cache_holds_everything(name):
    check(name, "other_caches.Right", **SIZES)


@pytest.mark.parametrize("name", ["everything_held_is_the_full_cache", "a_prompt_in_two_chunks_is_the_prompt"])
def test_a_cache_that_keeps_something_else_is_not_asked_for_what_it_never_promised(name):
    with pytest.raises(NotServed, match="it does not keep all that it is fed as it came in"):
        check(name, "other_caches.LengthOfSlots", **{**SIZES, "prompt": 60})


@pytest.mark.parametrize("name", ["a_slot_holds_the_token_of_its_position", "slots_stay_true_while_decoding"])
def test_what_a_press_leaves_in_the_cache_is_looked_at(name):
    check(name, "other_caches.RowZeroForAll", **SIZES)
    with pytest.raises(Violation, match="and another value"):
        check(name, "other_caches.OtherValues", **SIZES)


@pytest.mark.parametrize(
    "name",
    [
        "what_every_query_asks_for_is_found",
        "what_is_asked_for_later_is_found_too",
        "early_and_late_tokens_rank_alike",
    ],
)
def test_a_cache_that_keeps_the_newest_is_not_asked_for_what_it_dropped(name):
    with pytest.raises(NotServed, match="it does not keep all that it is fed as it came in"):
        check(name, "transformers.sliding_window:window=24", **SIZES)
    check(name, "other_caches.Right", **SIZES)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("a_query_reads_as_many_tokens_as_declared", "ReadsTheNewest", "ReadsMoreThanItSays"),
        ("more_bits_are_nearer", "MoreBitsAreNearer", "MoreBitsAreFurther"),
        ("a_saved_cache_goes_on_as_it_was", "OnDisk", "OnDiskWithoutValues"),
    ],
)
def test_what_a_class_has_of_its_own_is_tried(name, right, wrong):
    check(name, f"other_caches.{right}", **SIZES)
    with pytest.raises(Violation):
        check(name, f"other_caches.{wrong}", **SIZES)


def test_a_promise_is_kept_by_what_keeps_it():
    check("what_is_read_back_is_as_near_as_promised", "other_caches.Rounded:bits=6", **SIZES)
