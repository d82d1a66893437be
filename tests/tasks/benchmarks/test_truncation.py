"""Long prompts are cut in the middle, by tokens, and keep their first and last halves."""

from __future__ import annotations

import pytest
from benchmark_help import prompt

from kvcheck.core.errors import SpecError
from kvcheck.tasks.base import Sample, Turn
from kvcheck.tasks.benchmarks import benchmark_tasks
from kvcheck.tasks.benchmarks.truncate import shorten

LONG = 10**6


class Letters:
    """One token per character."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


class Forgetful(Letters):
    """Gives back lower case: what it decodes is not what it encoded."""

    def decode(self, ids):
        return "".join(map(chr, ids)).lower()


def make(context, question, lead=""):
    return Sample("t", 0, context, (Turn(question, ("x",), 5, "exact", lead=lead),), row="7")


@pytest.mark.parametrize("name", ["longbench/narrativeqa", "scbench/kv", "infinitebench/longbook_qa_eng"])
def test_first_and_last_half_of_the_prompt_are_kept(name, fixed, tokenizer):
    whole = fixed.get(name).generate(0, 0, LONG, tokenizer)
    ids = tokenizer.encode(prompt(whole))
    asked = len(tokenizer.encode(whole.turns[0].question))
    length = 2 * asked + 20
    assert length < len(ids)
    cut = fixed.get(name).generate(0, 0, length, tokenizer)
    half = length // 2
    assert prompt(cut) == tokenizer.decode(ids[:half]) + tokenizer.decode(ids[-half:])
    assert cut.turns == whole.turns
    assert len(tokenizer.encode(prompt(cut))) <= length


def test_an_odd_limit_loses_one_token():
    cut = shorten(make("abcdefghij", "?!"), 7, Letters())
    assert prompt(cut) == "abc" + "j?!"


def test_a_prompt_that_fits_is_left_alone():
    sample = make("abcdefghij", "?!")
    assert shorten(sample, 12, Letters()) is sample


def test_a_question_longer_than_the_second_half_loses_its_beginning():
    cut = shorten(make("abcdefghij", "QUESTION", ":"), 8, Letters())
    assert (cut.context, cut.turns[0].question, cut.turns[0].lead) == ("abcd", "ION", ":")
    assert prompt(cut) == "abcdION:"


def test_a_context_that_is_encoded_alone_is_cut_without_the_question():
    cut = shorten(make("abcdefghij", "QUESTION"), 4, Letters(), alone=True)
    assert (cut.context, cut.turns[0].question) == ("abij", "QUESTION")


def test_a_tokenizer_that_changes_texts_leaves_the_question_whole():
    cut = shorten(make("ABCDEFGHIJ", "WHO"), 9, Forgetful())
    assert cut.turns[0].question == "WHO"
    assert cut.context == "abcd" + "j"


def test_no_room_at_all_is_an_error():
    with pytest.raises(SpecError, match="row 7"):
        shorten(make("abcdefghij", "QUESTION", "LEADING"), 6, Letters())


def test_chinese_texts_stay_within_the_limit(fixed, tokenizer):
    for name in ("longbench/dureader", "scbench/qa_chn"):
        cut = fixed.get(name).generate(0, 0, 61, tokenizer)
        assert len(tokenizer.encode(prompt(cut))) <= 61


def test_the_scdq_form_measures_the_context_alone(folder, tokenizer):
    cut = benchmark_tasks(str(folder), scdq=True).get("scbench/kv").generate(0, 0, 300, tokenizer)
    assert 290 <= len(tokenizer.encode(cut.context)) <= 300
