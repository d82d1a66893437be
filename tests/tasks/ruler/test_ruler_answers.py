"""What RULER's tasks give to an oracle, to near misses and to those who have not read."""

from __future__ import annotations

import re
from collections import Counter
from statistics import mean

import pytest
from ruler_samples import LENGTHS, NAMES, NIAH, graded, sample_of, samples
from ruler_solvers import counted, hidden, relation_of, told, traced

from kvcheck.tasks import TASKS


@pytest.mark.parametrize("name", NAMES)
def test_an_oracle_scores_one(name, any_tokenizer):
    for length in LENGTHS:
        (turn,) = sample_of(name, any_tokenizer, 1, length).turns
        assert graded(turn, turn.expected) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_empty_and_constant_answers_score_no_more_than_chance(name, tokenizer):
    chance = TASKS.get(name).info.chance
    for answer in ("", "yes", "1234567", "...", "Paris", "otter"):
        got = mean(graded(sample.turns[0], answer) for sample in samples(name, tokenizer))
        assert got <= chance + 0.06, answer


@pytest.mark.parametrize("name", NAMES)
def test_a_closed_book_answer_of_the_right_form_scores_at_chance(name, tokenizer):
    """The answers of other samples stand for a model that knows the form and has not read the context."""
    found = samples(name, tokenizer)
    got = [
        graded(one.turns[0], other.turns[0].expected)
        for one in found
        for other in found
        if one is not other and kind(one) == kind(other)
    ]
    chance = TASKS.get(name).info.chance
    assert chance / 2.5 - 0.03 <= mean(got) <= chance * 1.15 + 0.02


def kind(sample):
    """Questions that ask for the same form of answer."""
    return relation_of(sample.turns[0].question)[0] if sample.task == "ruler/qa_1" else ""


def near_misses(sample):
    """Answers of the right form that stand in the context and are wrong."""
    name, (turn,) = sample.task, sample.turns
    if name in NIAH:
        return [value for values in hidden(sample).values() for value in values if value not in turn.references]
    if name == "ruler/vt":
        return [" ".join(traced(sample.context.partition("\n\n")[0]))]
    if name == "ruler/cwe":
        return [" ".join(word for word in counted(sample.context) if word not in turn.references)]
    if name == "ruler/fwe":
        words = [word for word, _ in Counter(sample.context.split()).most_common()]
        return [" ".join(words[words.index("...") + 4 :])]
    if name == "ruler/qa_1":
        relation, person = relation_of(turn.question)
        family = re.findall(rf"\b(\w+ {person.split()[-1]}) ", sample.context)
        return [told(sample.context, other, relation)[0] for other in set(family) - {person}]
    return cities_alike(sample)


def cities_alike(sample):
    """Cities of the firms whose names differ from the asked one's by digits only."""
    person = re.search(r"firm that (.+) works for", sample.turns[0].question).group(1)
    (base, digits) = re.search(rf"\b{person} went to ([A-Za-z]+)(\d+)\.", sample.context).groups()
    found = re.findall(rf"They opened {base}(\d+) in (\w+)\.", sample.context)
    assert len(found) == 5
    return [city for other, city in found if other != digits]


@pytest.mark.parametrize("name", NAMES)
def test_the_nearest_distractor_does_not_answer(name, tokenizer):
    got = [graded(sample.turns[0], miss) for sample in samples(name, tokenizer) for miss in near_misses(sample)]
    assert mean(got or [0.0]) <= (0.1 if name == "ruler/qa_1" else 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_copying_the_last_sentence_scores_no_more_than_chance(name, tokenizer):
    """The last needle is the asked one now and then, the last assignment has two names, the last words are frequent."""
    by_luck = {"ruler/vt": 0.1, "ruler/fwe": 0.2, "ruler/niah_multikey_3": 0.1}
    got = [graded(s.turns[0], re.split(r"[.\n]", s.context.rstrip(".\n"))[-1]) for s in samples(name, tokenizer)]
    assert mean(got) <= TASKS.get(name).info.chance + by_luck.get(name, 0.05)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("ruler/cwe", "ruler/fwe")])
def test_the_answer_stands_in_the_evidence_and_not_in_the_question(name, tokenizer):
    for sample in samples(name, tokenizer, 10):
        (turn,) = sample.turns
        evidence = " ".join(sample.context[start:end] for start, end in turn.evidence)
        assert all(reference in evidence for reference in turn.references)
        assert not any(reference in turn.question + turn.lead for reference in turn.references)
        starts = [start / len(sample.context) for start, _ in turn.evidence]
        assert turn.depth == pytest.approx(mean(starts))


@pytest.mark.parametrize("name", ["ruler/cwe", "ruler/fwe"])
def test_counting_has_no_evidence_but_the_whole_text(name, tokenizer):
    (turn,) = sample_of(name, tokenizer).turns
    assert (turn.evidence, turn.depth) == ((), None)
