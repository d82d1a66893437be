"""RULER's variables, words and coded words: a solver of its own finds the answers."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from ruler_samples import LENGTHS, sample_of, samples
from ruler_solvers import counted, listing, traced

from kvcheck.tasks.ruler.counting import shares
from kvcheck.tasks.ruler.words import made_up, plain


@pytest.mark.parametrize("length", LENGTHS)
def test_following_the_assignments_answers(length, tokenizer):
    for index in range(5):
        sample = sample_of("ruler/vt", tokenizer, index, length)
        (turn,) = sample.turns
        value = re.search(r"\d{5}", turn.question).group()
        assert [name for name, held in traced(sample.context).items() if held == value] == list(turn.references)


def test_one_chain_of_four_hops_stands_behind_a_solved_example(tokenizer):
    for sample in samples("ruler/vt", tokenizer, 10, 4096):
        example, _, asked = sample.context.partition("\n\n")
        assert len(traced(asked)) == len(traced(example)) == 5
        assert len(set(traced(asked).values())) == 1
        assert not set(traced(asked)) & set(traced(example))
        assert example.endswith(" ".join(traced(example)))
        assert 400 < len(tokenizer.encode(example)) <= 500


def test_the_beginning_of_the_answer_says_how_many_variables_there_are(tokenizer):
    assert " 5 " in sample_of("ruler/vt", tokenizer).turns[0].lead


@pytest.mark.parametrize("length", [*LENGTHS, 4095])
def test_ten_words_are_more_common_than_all_others(length, tokenizer):
    for index in range(3):
        sample = sample_of("ruler/cwe", tokenizer, index, length)
        counts = counted(listing(sample))
        top = counts.most_common(10)
        assert {word for word, _ in top} == set(sample.turns[0].references)
        common, other = (30, 3) if length >= 4096 else (6, 1)
        assert {count for _, count in top} == {common}
        assert set(counts.values()) == {common, other}


@pytest.mark.parametrize(("length", "form"), [(512, None), (1024, (20, 3, 1)), (4096, (40, 10, 3))])
def test_a_solved_list_stands_before_the_asked_one_where_there_is_room(length, form, tokenizer):
    sample = sample_of("ruler/cwe", tokenizer, 0, length)
    example = sample.context.rpartition("\n\n")[0]
    if form is None:
        assert example == ""
        return
    counts = counted(example.partition("\n")[0])
    assert (len(counts), max(counts.values()), min(counts.values())) == form
    assert not set(counts) & set(counted(listing(sample)))
    answer = example.rpartition("words are")[2]
    assert {word for word, count in counts.items() if count == form[1]} == set(counted(answer))


def test_words_are_made_up_where_the_known_ones_do_not_suffice(tokenizer):
    short, long = (set(counted(sample_of("ruler/cwe", tokenizer, 0, length).context)) for length in (1024, 16_384))
    assert short <= set(plain())
    assert not long & set(plain())
    assert len(long) > len(plain())


def test_no_known_word_stands_inside_another():
    assert not [(a, b) for a in plain() for b in plain() if a != b and a in b]


def test_made_up_words_are_thousands_of_one_length():
    rng = random.Random(0)
    words = {made_up(rng) for _ in range(10_000)}
    assert len(words) > 9_000
    assert {len(word) for word in words} == {6}


@pytest.mark.parametrize("length", LENGTHS)
def test_the_most_frequent_coded_words_come_behind_the_dots(length, tokenizer):
    for index in range(3):
        sample = sample_of("ruler/fwe", tokenizer, index, length)
        counts = Counter(sample.context.partition("Text:")[2].split())
        ranks = counts.most_common()
        assert ranks[0][0] == "..."
        assert {word for word, _ in ranks[1:4]} == set(sample.turns[0].references)
        assert ranks[3][1] > ranks[4][1]
        assert all(re.fullmatch("[a-z]{6}", word) for word in counts if word != "...")
        assert len(counts) <= (length - 50) // 50


def test_coded_words_follow_zipfs_law():
    scipy = pytest.importorskip("scipy.special")
    words = [f"w{rank}" for rank in range(1, 30)]
    wanted = [int(2000 * rank**-2.0 / scipy.zeta(2.0)) for rank in range(1, 30)]
    assert [count for _, count in shares(words, 2000)] == [count for count in wanted if count]


@pytest.mark.parametrize("name", ["ruler/cwe", "ruler/fwe"])
def test_words_stand_in_another_order_in_every_sample(name, tokenizer):
    """RULER shuffles every sample alike, so the places of the common words repeat."""

    def places(sample):
        words = re.findall(r"[a-z]{3,}|\.\.\.", listing(sample) if "cwe" in name else sample.context)
        return tuple(at for at, word in enumerate(words) if word in sample.turns[0].references)

    assert len({places(sample) for sample in samples(name, tokenizer, 10)}) == 10
