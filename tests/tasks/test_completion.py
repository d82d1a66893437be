"""Tasks in which nothing is asked: the text goes on."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from pathlib import Path

import pytest

from kvcheck.core.errors import SpecError
from kvcheck.core.paths import bundle
from kvcheck.runner.prompts import cut
from kvcheck.tasks import TASKS, find, lexicon, members
from kvcheck.tasks.completion import ASKED, GIVEN, NEXT, Text, beginning
from kvcheck.tasks.metrics import score
from kvcheck.tasks.profiles import PROFILES, cases

NAMES = ("completion/prose", "completion/echo", "completion/needle", "completion/kv", "completion/many_shot")
ANSWERED = NAMES[1:4]
"""Those with an answer that stands at one place of the context."""
SHIPPED = bundle("fixtures") / "prose" / "text.txt"


def samples(name, tokenizer, count=4, length=512, seed=7, text=""):
    return [find(name, text=text).generate(seed, index, length, tokenizer) for index in range(count)]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A text of a user's."""
    path = tmp_path / "mine.txt"
    path.write_text(SHIPPED.read_text("utf-8")[40_000:90_000].replace("Python", "Snake"), "utf-8")
    return path


def test_they_are_one_family():
    assert tuple(members("completion")) == NAMES


@pytest.mark.parametrize("profile", sorted({*PROFILES} - {"real"}))
def test_no_usual_profile_and_no_list_has_them(profile):
    assert not {case.task for case in cases(profile)} & set(NAMES)
    assert not set(TASKS.names()) & set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [512, 997])
def test_a_context_has_exactly_the_tokens_that_were_asked_for(name, length, tokenizer):
    for sample in samples(name, tokenizer, 3, length):
        assert len(tokenizer.encode(sample.context)) == length


@pytest.mark.parametrize("name", NAMES)
def test_two_seeds_give_different_samples(name, tokenizer):
    first, second = (samples(name, tokenizer, 4, seed=seed) for seed in (1, 2))
    assert not {sample.digest for sample in first} & {sample.digest for sample in second}


@pytest.mark.parametrize(
    ("name", "digest"),
    list(zip(NAMES, ("fd2bc7d45850", "805baf677dd3", "a6d36b8935ff", "3fcbc9ebc862", "f26f6d979268"), strict=True)),
)
def test_the_same_seed_gives_the_same_bytes_on_every_machine(name, digest, tokenizer):
    sample = find(name).generate(0, 0, 512, tokenizer)
    assert hashlib.sha256(repr(sample).encode()).hexdigest()[:12] == digest


@pytest.mark.parametrize("name", ANSWERED)
def test_nothing_is_asked_and_what_the_text_says_is_right(name, tokenizer):
    for sample in samples(name, tokenizer):
        assert len(sample.turns) == 4
        for turn in sample.turns:
            assert "?" not in turn.question
            assert "Answer" not in turn.question
            evidence = " ".join(sample.context[start:end] for start, end in turn.evidence)
            assert turn.question.strip() + turn.space + turn.expected in evidence
            assert sample.context.count(turn.question.strip() + turn.space) == 1
            assert score(turn.metric, turn.expected, turn.references, turn.options) == 1.0


@pytest.mark.parametrize("name", ANSWERED)
def test_the_answer_fits_the_tokens_that_it_may_have(name, tokenizer):
    for sample in samples(name, tokenizer):
        for turn in sample.turns:
            assert len(tokenizer.encode(turn.space + turn.expected)) <= turn.max_new_tokens


@pytest.mark.parametrize("name", ANSWERED)
def test_what_is_begun_lies_at_depths_all_over_the_context(name, tokenizer):
    depths = sorted(turn.depth for sample in samples(name, tokenizer, 8, 2048) for turn in sample.turns)
    assert depths[0] < 0.1
    assert depths[-1] > 0.9


@pytest.mark.parametrize(
    ("name", "more"), [("completion/needle", ". The"), ("completion/kv", "; saw61"), ("completion/many_shot", "; 0")]
)
def test_a_model_that_goes_on_behind_the_answer_is_right(name, more, tokenizer):
    turn = samples(name, tokenizer, 1)[0].turns[0]
    assert cut(turn.expected + more, turn.stop) == (turn.expected, True)


def test_a_class_is_that_of_every_case_with_this_animal(tokenizer):
    for sample in samples("completion/many_shot", tokenizer):
        for turn in sample.turns:
            animal = turn.question.split()[1]
            assert set(re.findall(rf" {animal} type (\w+);", sample.context)) == {turn.expected}


class TestProse:
    def test_it_is_a_stretch_of_the_text_and_what_comes_then(self, tokenizer):
        for sample in samples("completion/prose", tokenizer, 6):
            (turn,) = sample.turns
            around = (Text().whole + "\n" + Text().whole).replace("\n\n", "\n")
            assert (sample.context + turn.question + turn.expected).replace("\n\n", "\n") in around

    def test_nothing_is_generated_and_nothing_graded(self, tokenizer):
        assert not find("completion/prose").info.scored
        for sample in samples("completion/prose", tokenizer):
            (turn,) = sample.turns
            assert (turn.max_new_tokens, turn.metric) == (0, "")
            assert len(turn.expected.split()) == NEXT

    def test_the_stretches_of_a_case_do_not_overlap(self, tokenizer):
        places = sorted(
            Text().whole.find(sample.context[:200]) for sample in samples("completion/prose", tokenizer, 16)
        )
        longest = max(len(sample.context) for sample in samples("completion/prose", tokenizer, 16))
        assert min(b - a for a, b in pairwise(places)) > longest

    def test_scripts_without_blanks_are_cut_between_characters(self, tokenizer, tmp_path):
        path = tmp_path / "zh.txt"
        path.write_text("\n".join("很".join(lexicon.ZH_NOUNS) + "。" for _ in range(40)), "utf-8")
        (sample,) = samples("completion/prose", tokenizer, 1, 512, text=str(path))
        assert len(tokenizer.encode(sample.context)) == 512


class TestEcho:
    def test_some_words_of_a_sentence_are_given_and_the_next_are_asked(self, tokenizer):
        for sample in samples("completion/echo", tokenizer):
            for turn in sample.turns:
                assert len(turn.question.split()) == GIVEN
                assert len(turn.expected.split()) == ASKED

    def test_no_two_sentences_begin_alike(self):
        sentences = Text().sentences
        assert len({beginning(sentence) for sentence in sentences}) == len(sentences) > 500


class TestTheText:
    def test_it_is_small_plain_and_the_same_everywhere(self):
        found = SHIPPED.read_bytes()
        assert len(found) < 300_000
        assert found.isascii()
        assert b"\r" not in found
        assert hashlib.sha256(found).hexdigest()[:12] == "91b3457b9f07"

    def test_its_licence_lies_beside_it(self):
        licence = SHIPPED.with_name("LICENSE.txt").read_text("utf-8")
        assert "Copyright (c) 2001-2024 Python Software Foundation; All Rights Reserved" in licence
        assert "What was changed" in licence

    @pytest.mark.parametrize("name", NAMES[:2])
    def test_a_file_of_the_users_takes_its_place(self, name, tokenizer, own):
        theirs, ours = (samples(name, tokenizer, 2, text=text) for text in (str(own), ""))
        words = set(re.findall(r"\w+", own.read_text("utf-8")))
        assert {sample.digest for sample in theirs}.isdisjoint(sample.digest for sample in ours)
        assert "Snake" in " ".join(sample.context for sample in samples(name, tokenizer, 8, text=str(own)))
        assert set(re.findall(r"\w+", theirs[0].turns[0].expected)) <= words
        assert find(name, text=str(own)).text
        assert not find(name).text

    def test_one_that_is_too_short_is_refused_with_what_it_has(self, tokenizer, tmp_path):
        path = tmp_path / "short.txt"
        path.write_text("The cat sat on the mat and looked at the rain. " * 20, "utf-8")
        with pytest.raises(SpecError, match=r"no stretch of exactly 512 tokens .* it has 220 words, and \d+ tokens"):
            samples("completion/prose", tokenizer, text=str(path))
        with pytest.raises(SpecError, match="has 1 sentences of 11 to 30 words in plain letters, and 50 are needed"):
            samples("completion/echo", tokenizer, text=str(path))
