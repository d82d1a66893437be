"""The slips of the benchmarks' code: reproduced with compat, and only then. Numbers as in the fact sheet, section 4."""

from __future__ import annotations

import pytest

from kvcheck.core.paths import bundle
from kvcheck.tasks.benchmarks import DATA_SETS, benchmark_tasks
from kvcheck.tasks.metrics import score

LONG = 10**6
ROWS = bundle("fixtures") / "data" / "benchmarks"


def graded(turn, answer):
    return score(turn.metric, answer, turn.references, turn.options)


@pytest.fixture
def pair(fixed, slips, tokenizer):
    """The first sample of a task, sound and with slips."""

    def make(name):
        return tuple(tasks.get(f"scbench/{name}").generate(0, 0, LONG, tokenizer) for tasks in (fixed, slips))

    return make


def test_slip_1_a_perfect_chinese_answer_of_three_characters_scores_a_half(pair):
    sound, slip = pair("qa_chn")
    assert sound.turns[0].references == slip.turns[0].references == ("林小梅",)
    assert (graded(sound.turns[0], "林小梅"), graded(slip.turns[0], "林小梅")) == (1.0, 0.5)


def test_slip_2_any_letter_in_a_many_shot_answer_counts(pair):
    sound, slip = pair("many_shot")
    assert sound.turns[0].references == ("A",)
    assert (graded(sound.turns[0], "(B) because"), graded(slip.turns[0], "(B) because")) == (0.0, 1.0)
    assert graded(sound.turns[0], "The answer is (A)") == 1.0


def test_slip_3_the_first_letter_of_an_answer_is_read_as_the_choice(pair):
    sound, slip = pair("choice_eng")
    assert sound.turns[0].references == ("Bruno Salter", "B")
    assert (graded(sound.turns[0], "Answer: B"), graded(slip.turns[0], "Answer: B")) == (1.0, 0.0)


def test_slip_4_follow_ups_of_math_find_ask_for_the_last_goal(pair):
    sound, slip = pair("mf")
    assert slip.context.startswith("What is the largest number?\n\n[")
    assert slip.turns[1].question.startswith("\n\nWhat is the second smallest number?")
    assert sound.turns[1].question.startswith("\n\nWhat is the second largest number?")


def test_slip_4_a_context_that_is_encoded_alone_begins_with_the_first_question(tokenizer, pair):
    alone = benchmark_tasks(str(ROWS), compat=True, scdq=True).get("scbench/mf").generate(0, 0, LONG, tokenizer)
    assert alone.context.startswith("Reply with a number and nothing more. The largest number is: \n\n[")
    assert alone.turns[1].question.startswith("What is the second largest number?\n\n")
    sound = benchmark_tasks(str(ROWS), scdq=True).get("scbench/mf").generate(0, 0, LONG, tokenizer)
    assert sound == pair("mf")[0]


def test_slip_5_later_summaries_are_begun_for_the_model(pair):
    sound, slip = pair("summary")
    assert [turn.lead for turn in slip.turns] == ["", *["This paper"] * 4]
    assert {turn.lead for turn in sound.turns} == {""}
    assert [turn.space for turn in slip.turns] == [" ", *[""] * 4]  # the right answer is glued to it


def test_slip_7_the_pool_of_a_mixed_task_has_its_functions_alone(pair):
    for sample in pair("repoqa_and_kv"):
        functions = {turn.references[0] for turn in sample.turns if turn.subtask == "repoqa"}
        pools = {turn.subtask: turn.options for turn in sample.turns}
        assert functions <= set(pools["repoqa"])
        assert all(one.startswith("def ") for one in pools["repoqa"])
        assert pools["kv"] == ()


def test_slip_6_the_second_bos_is_in_the_record(fixed, slips):
    assert fixed.get("scbench/kv").facts["bos"] == "1"
    assert slips.get("scbench/kv").facts["bos"] == "2"


def test_slip_8_english_answers_are_graded_by_containment(pair):
    sound, slip = pair("qa_eng")
    assert (sound.turns[0].metric, slip.turns[0].metric) == ("qa_f1", "any_substring")
    answer = "It was Ida Korhonen who drew them"
    assert graded(slip.turns[0], answer) == 1.0
    assert graded(sound.turns[0], answer) < 1.0


@pytest.mark.parametrize(("name", "all_turns"), [("mf", 6), ("repoqa_and_kv", 8), ("summary_with_needles", 8)])
def test_the_official_script_drops_turns_beyond_the_fifth(name, all_turns, pair):
    sound, slip = pair(name)
    assert (len(sound.turns), len(slip.turns)) == (all_turns, 5)


def test_longbench_classes_have_their_slip(fixed, slips, tokenizer):
    turns = [tasks.get("longbench/trec").generate(0, 0, LONG, tokenizer).turns[0] for tasks in (fixed, slips)]
    assert [graded(turn, turn.expected) for turn in turns] == [1.0, 1.0]
    assert [turn.metric for turn in turns] == ["classification", "classification_compat"]


def test_infinitebench_slips(fixed, slips, tokenizer):
    def both(name, answer):
        found = [
            tasks.get(f"infinitebench/{name}").generate(0, 0, LONG, tokenizer).turns[0] for tasks in (fixed, slips)
        ]
        return tuple(graded(turn, answer) for turn in found)

    assert both("code_debug", "A") == (1.0, 0.0)
    assert both("longdialogue_qa_eng", "ACE ADAS") == (1.0, 0.0)
    assert both("math_calc", "[3, 7, -2, -1]") == (1.0, 0.5)
    assert both("math_calc", "[3, 8]") == (0.25, 0.25)


def test_a_metric_changes_with_compat_only_where_the_declaration_says_so(fixed, slips, tokenizer):
    for name in ("longbench/qasper", "scbench/kv", "infinitebench/code_run", "ruler_4096/cwe"):
        assert not DATA_SETS[name].metric_compat
        turns = [tasks.get(name).generate(0, 0, LONG, tokenizer).turns[0] for tasks in (fixed, slips)]
        assert turns[0].metric == turns[1].metric
