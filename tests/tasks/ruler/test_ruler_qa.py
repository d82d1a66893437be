"""RULER's questions about documents: one document, or two hops, answers."""

from __future__ import annotations

import re

import pytest
from ruler_samples import LENGTHS, PIECES, graded, sample_of, samples
from ruler_solvers import documents, relation_of, told

from kvcheck.tasks import TASKS
from kvcheck.tasks.ruler.fit import SLOTS


@pytest.mark.parametrize("length", LENGTHS)
def test_one_document_answers_the_first_kind_of_question(length, tokenizer):
    for index in range(5):
        sample = sample_of("ruler/qa_1", tokenizer, index, length)
        (turn,) = sample.turns
        relation, person = relation_of(turn.question)
        assert told(sample.context, person, relation) == list(turn.references)
        assert sum(person in document for document in documents(sample)) == 1
        last = person.split()[-1]
        assert sum(last in document for document in documents(sample)) == 5


@pytest.mark.parametrize("length", LENGTHS)
def test_two_hops_answer_the_second_kind_of_question(length, tokenizer):
    for index in range(5):
        sample = sample_of("ruler/qa_2", tokenizer, index, length)
        (turn,) = sample.turns
        person = re.search(r"firm that (.+) works for", turn.question).group(1)
        (firm,) = re.findall(rf"\b{person} went to (\w+)\.", sample.context)
        assert re.findall(rf"They opened {firm} in (\w+)\.", sample.context) == list(turn.references)
        assert firm not in turn.question
        at = [number for number, text in enumerate(documents(sample)) if firm in text]
        assert len(at) == 2
        assert len(documents(sample)) >= 10


def test_the_gold_document_stands_elsewhere_in_every_sample(tokenizer):
    """RULER permutes every sample alike: its gold document keeps one place."""
    depths = sorted(sample.turns[0].depth for sample in samples("ruler/qa_1", tokenizer, SLOTS, 4096))
    assert depths[0] < 0.1
    assert depths[-1] > 0.85
    assert len(set(depths)) > 30


def test_the_home_of_the_person_is_not_the_city_of_the_firm(tokenizer):
    for sample in samples("ruler/qa_2", tokenizer):
        person = re.search(r"firm that (.+) works for", sample.turns[0].question).group(1)
        (home,) = told(sample.context, person, "live")
        assert graded(sample.turns[0], home) == 0.0


def test_people_of_very_long_texts_have_a_middle_letter_and_no_namesake():
    sample = TASKS.get("ruler/qa_1").generate(0, 0, 70_000, PIECES)
    relation, person = relation_of(sample.turns[0].question)
    assert re.fullmatch(r"\w+ [A-Z] \w+", person)
    assert told(sample.context, person, relation) == list(sample.turns[0].references)
