"""Every property fails on a method that breaks it, and holds on the correct one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvcheck.conformance import NAMES, runner
from kvcheck.conformance.base import PROPERTIES, PropertyTest, names, property_test
from kvcheck.conformance.draw import Draw
from kvcheck.conformance.models import CONFIGS
from kvcheck.conformance.runner import AGAIN, check, examine
from kvcheck.conformance.subject import Violation
from kvcheck.conformance.tables import written
from kvcheck.core.errors import SpecError
from kvcheck.core.record import EXCUSED, FAILS, HOLDS, UNSERVED
from kvcheck.methods import METHODS
from kvcheck.report import conformance as report

ZOO = "kvcheck.zoo."
MUTANT = "kvcheck.zoo.mutants."
BREAKS = {
    "everything_held_is_the_full_cache": "faults.LosesFirst",
    "the_prompt_is_read_as_by_the_full_cache": "faults.SeesHalf",
    "a_prompt_in_two_chunks_is_the_prompt": "faults.LastChunk",
    "an_absorbed_prompt_is_the_prompt": "faults.AbsorbsZeros",
    "a_block_is_its_tokens_one_by_one": "faults.BlindBlock",
    "a_prompt_and_what_follows_are_one_text": "faults.BlindArchitecture",
    "a_block_begins_as_its_first_token": "faults.BlindBlock",
    "a_later_token_never_changes_earlier_logits": "faults.NonCausalBlock",
    "a_later_token_of_the_prompt_never_changes_earlier_logits": "faults.NonCausalPrompt",
    "the_newest_token_is_seen": MUTANT + "ForgottenAnswer:of=fp16",
    "what_reads_less_answers_otherwise": "faults.SeesAll",
    "a_query_reads_as_many_tokens_as_declared": "faults.TwiceThePages",
    "what_every_query_asks_for_is_found": "faults.NewestPages",
    "what_is_asked_for_later_is_found_too": "faults.Uncounted",
    "early_and_late_tokens_rank_alike": "faults.Winner",
    "weights_add_up_to_one": "faults.EmptyPage",
    "what_no_token_was_written_to_is_not_read": "faults.WholeBuffer",
    "the_newest_tokens_are_at_their_distance": "faults.SlotQuery",
    "a_token_is_fed_at_its_position": MUTANT + "WrongPosition:of=fp16",
    "the_length_of_a_cache_is_the_tokens_seen": "faults.StoredLength",
    "a_slot_holds_the_token_of_its_position": MUTANT + "SwappedHeads:of=fp16",
    "slots_stay_true_while_decoding": "faults.WrongSlots",
    "a_key_that_was_moved_stands_at_a_place_of_the_text": ZOO + "positions.RerotationUsesUnscaledRope",
    "what_is_kept_follows_from_the_tokens_seen": ZOO + "long_generation.WindowCacheOnlyRightForFirstPrompt",
    "what_is_held_is_true_in_every_turn": "faults.LosesSinks",
    "promised_tokens_are_held_whatever_the_scores": "faults.RaisedWindow",
    "bytes_are_as_declared": "faults.LosesFirst",
    "a_block_takes_the_bytes_of_its_tokens": ZOO + "eviction.MultiTokenAppendNeverEvicts",
    "a_fork_holds_what_its_rows_need": "faults.HeavyFork",
    "bytes_stay_as_declared_in_long_decoding": "faults.LateHoard",
    "memory_is_freed_in_every_row_of_every_sample": ZOO + "state_leak.KvLenCounterSurvivesSample",
    "memory_stays_bounded_while_decoding": ZOO + "long_generation.EvictAtPrefillOnly",
    "nothing_piles_up_over_samples": "faults.Piling",
    "sizes_are_right_around_every_border": "faults.Ceil",
    "every_parameter_changes_something": "faults.KeepsHalf",
    "what_is_stored_is_read": "faults.Unread",
    "every_length_gives_finite_numbers": "faults.Spread",
    "a_repeated_token_gives_finite_numbers": ZOO + "quantization.ConstantGroupDividesByZero",
    "keys_and_values_of_zero_give_finite_numbers": ZOO + "quantization.ConstantGroupDividesByZero",
    "what_is_read_back_is_as_near_as_promised": ZOO + "quantization.KeysQuantizedPerVector:bits=4",
    "the_size_of_numbers_does_not_matter": ZOO + "quantization.ScalesFallBackToOne",
    "what_is_decoded_is_read_back_as_near_as_promised": "faults.LosesFolded",
    "more_bits_are_nearer": "faults.AlwaysTwoBits",
    "what_was_read_back_is_stored_without_loss": "faults.Fading",
    "a_row_of_a_batch_is_as_alone": "faults.Mean",
    "permuted_rows_give_permuted_answers": "faults.RowNumber",
    "rows_that_finish_early_leave_the_others_alone": "faults.Shrinking",
    "forks_do_not_disturb_each_other": "faults.SharedFork",
    "beams_that_are_reordered_go_on_as_their_parents": ZOO + "beam.ReorderOnlyResidual",
    "rows_can_be_repeated_and_taken_out_in_place": "faults.PlainCopies",
    "a_sample_does_not_depend_on_those_before_it": "faults.Counting",
    "the_same_call_gives_the_same": "faults.Random",
    "interleaved_samples_do_not_disturb_each_other": "faults.LastPrompt",
    "two_models_do_not_disturb_each_other": "faults.LastModel",
    "configurations_and_weights_are_left_alone": "faults.TouchesConfig",
    "a_reused_prefix_is_as_a_fresh_one": "faults.AliasedFork",
    "a_shared_beginning_changes_no_answer": "faults.FirstTokens",
    "what_is_shared_keeps_its_bytes": "faults.AliasedFork",
    "a_reset_cache_is_as_a_fresh_one": "faults.StaleReset",
    "a_saved_cache_goes_on_as_it_was": "faults.Unsaved",
    "what_is_taken_back_was_never_there": "faults.Cropped",
    "sinks_that_take_all_leave_nothing": "faults.NoSinkInABlock",
    "caps_and_sinks_are_those_of_the_model": "faults.CapsMaskedScores",
    "a_state_goes_on_in_several_pieces": "faults.ForgetsAtABlock",
    "a_state_is_that_of_its_row": "faults.StateOfTheFirstRow",
    "a_shared_state_goes_on_as_a_fresh_one": "faults.SharedState",
    "a_state_that_goes_back_never_went_on": "faults.StateCopiedInPart",
    "every_way_in_leads_to_the_same_by_every_way_out": "faults.StaleSteps",
    "the_order_of_kv_heads_does_not_matter": "faults.FirstHead",
    "where_a_text_begins_does_not_matter": "faults.Absolute",
    "generate_answers_as_tokens_fed_by_hand": "faults.CountsSlots",
    "verified_drafts_are_the_tokens_of_generate": "faults.CropsTooFew",
    "rows_padded_on_the_left_answer_as_alone": "faults.MasksShifted",
}
"""A faulty method for every property: one of tests/conformance/faults.py, of the zoo, or a mutant."""
ALSO = {
    "nothing_piles_up_over_samples": "faults.PilingRow",
    "memory_is_freed_in_every_row_of_every_sample": "faults.Lazy",
    "memory_stays_bounded_while_decoding": "faults.Hoarding",
}
"""Another fault, of a kind that the first one is not."""
HOLD_ON = ("fp16", "h2o", "kivi", "streaming_llm", "quest")
HOLD_TOO = {
    "a_prompt_and_what_follows_are_one_text": "mixattention",
    "what_is_taken_back_was_never_there": "transformers.dynamic",
    "verified_drafts_are_the_tokens_of_generate": "transformers.dynamic",
    "rows_padded_on_the_left_answer_as_alone": "transformers.dynamic",
}
"""By property, a method more where none of HOLD_ON has what is asked about."""


def test_the_names_are_those_of_the_properties():
    assert set(PROPERTIES) == set(NAMES)
    assert tuple(BREAKS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_method_that_breaks_the_property_is_found(name):
    found = examine(name, BREAKS[name], 12)
    assert found.outcome == FAILS, found
    assert found.reason


@pytest.mark.parametrize("name", ALSO)
def test_another_fault_is_found_in_the_fewest_trials(name):
    assert examine(name, ALSO[name], 1).outcome == FAILS


@pytest.mark.parametrize("name", NAMES)
def test_the_property_holds_on_correct_methods_and_is_tried_on_one(name):
    outcomes = set()
    for spec in (*HOLD_ON, *([HOLD_TOO[name]] if name in HOLD_TOO else [])):
        found = examine(name, spec, 3)
        assert found.outcome in (HOLDS, EXCUSED, UNSERVED), found
        outcomes.add(found.outcome)
    assert HOLDS in outcomes


def test_every_property_says_in_words_what_holds():
    for one in PROPERTIES.values():
        assert len(one.claim) > 20
        assert one.claim.endswith(".")


def test_the_documentation_lists_every_property_to_how_many_it_applies_and_every_opt_out():
    """`python -m kvcheck.conformance.tables docs/reference/conformance.md` writes the tables anew."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "conformance.md").read_text("utf-8")
    assert written(page) == page
    rows = [f"| `{one.name}` | {one.claim} |" for one in PROPERTIES.values()]
    rows += [
        f"| `{name}` | `{one}` | {why} |"
        for name in METHODS.names()
        for one, why in METHODS.get(name).info.exempt.items()
    ]
    assert [row for row in rows if row not in page] == []


def test_the_small_models_have_a_layer_more_than_methods_may_leave_as_they_are():
    assert min(config().num_hidden_layers for config in CONFIGS.values()) > 2


def late(subject):
    """Nothing."""


def test_a_property_of_ones_own_must_be_there_before_tests_are_collected():
    names()
    with pytest.raises(SpecError, match="'late' comes too late"):
        property_test()(late)


def test_a_name_of_a_shipped_property_is_taken(monkeypatch):
    monkeypatch.setattr(late, "__name__", NAMES[0])
    with pytest.raises(SpecError, match="already"):
        property_test()(late)


def test_an_opt_out_names_a_property():
    for name in METHODS.names():
        assert set(METHODS.get(name).info.exempt) <= set(NAMES)


def test_a_failure_is_shrunk_and_comes_as_a_test_that_fails():
    found = examine("a_row_of_a_batch_is_as_alone", "faults.Mean", 12)
    assert "rows=2" in found.snippet
    assert "prompt=" not in found.snippet
    names: dict[str, object] = {}
    exec(found.snippet, names)
    with pytest.raises(Violation, match="row"):
        names["test_a_row_of_a_batch_is_as_alone"]()


def test_an_exception_of_the_method_is_a_failure_with_its_place():
    found = examine("every_length_gives_finite_numbers", "faults.Raises", 2)
    assert found.outcome == FAILS
    assert "it raised ZeroDivisionError in compress (faults.py:" in found.reason


def test_an_opt_out_has_a_reason():
    found = examine("a_block_is_its_tokens_one_by_one", "h2o", 2)
    assert (found.outcome, found.reason) == (EXCUSED, "a block is attended to whole, then evicted from once")


def test_a_refusal_is_no_failure():
    found = examine("what_is_taken_back_was_never_there", "fp16", 3)
    assert found.outcome == UNSERVED
    assert "no crop" in found.reason


def once(name, monkeypatch, fails):
    """examine(..., 12) of a property that does not hold where `fails(draw)`, but always with other tokens."""

    def check(subject):
        if subject.draw.seed < AGAIN and fails(subject.draw):
            raise Violation("a tie fell the other way")

    check.__name__ = name
    monkeypatch.setitem(PROPERTIES, name, PropertyTest(check, lambda info: "", 40, 2, 1.0))
    return examine(name, "fp16", 12)


def test_trials_that_fail_once_and_not_again_are_counted_and_shown(monkeypatch):
    found = once("ties", monkeypatch, lambda draw: draw.rows == 3)
    assert found.outcome == HOLDS
    count = 13 - found.trials
    assert 0 < count < 7
    said = f"{count} trial{'s'[: count > 1]} failed once and not again, the first one: a tie fell the other way"
    assert found.reason == said
    shown = "\n".join(report.lines([found]))
    assert f'holds, but: "ties" ({said})' in " ".join(shown.split())
    assert said in "\n".join(report.markdown([found]))


def test_more_than_half_that_fail_once_are_a_failure(monkeypatch):
    found = once("ties", monkeypatch, lambda draw: draw.prompt > 1)
    assert (found.outcome, found.trials) == (FAILS, 13)
    assert found.reason.startswith("of 13, ")
    names: dict[str, object] = {}
    exec(found.snippet, names)
    with pytest.raises(Violation, match="tie"):
        names["test_ties"]()


def test_few_trials_that_fail_once_and_none_that_holds_say_so(monkeypatch):
    monkeypatch.setattr(runner, "ENOUGH", 100)
    found = once("ties", monkeypatch, lambda draw: True)
    assert (found.outcome, found.trials) == (UNSERVED, 0)
    assert found.reason.startswith("13 trials failed once and not again")


@pytest.mark.parametrize("trials", [1, 12, 60])
def test_trials_beyond_the_simplest_are_seldom_short_and_none_says_what_another_said(monkeypatch, trials):
    drawn = []
    monkeypatch.setitem(
        PROPERTIES, "any", PropertyTest(lambda one: drawn.append(one.draw), lambda info: "", 300, 12, 1.0)
    )
    assert examine("any", "fp16", trials).trials == 1 + trials
    assert drawn[0] == Draw()
    assert len({(draw.architecture, draw.prompt) for draw in drawn}) == len(drawn)
    assert sum(draw.prompt <= 3 for draw in drawn) <= 1 + len(drawn) / 4


def test_an_unknown_property_is_refused_with_the_nearest_name():
    with pytest.raises(SpecError, match="unknown property"):
        check("a_row_of_a_batch_is_alone", "fp16")


def drawn(monkeypatch, name, seed):
    found = []
    monkeypatch.setattr(runner, "trial", lambda one, spec, draw: found.append(draw) or [])
    examine(name, "fp16", 5, seed)
    return found


def test_another_seed_draws_other_trials(monkeypatch):
    assert drawn(monkeypatch, NAMES[0], 0) != drawn(monkeypatch, NAMES[0], 1)


def test_two_properties_are_tried_on_different_texts(monkeypatch):
    assert drawn(monkeypatch, "a_row_of_a_batch_is_as_alone", 0) != drawn(
        monkeypatch, "the_same_call_gives_the_same", 0
    )


def test_a_trial_is_repeatable():
    for _ in range(2):
        check("a_row_of_a_batch_is_as_alone", "snapkv", rows=2, prompt=40, block=3, steps=2)
    assert Draw(rows=2).text() == "rows=2"
