"""The eight needle tasks of RULER hide what the table says."""

from __future__ import annotations

import re

import pytest
from ruler_samples import BLOCK, HAYSTACKS, LENGTHS, NEEDLE, NIAH, PIECES, sample_of, samples
from ruler_solvers import hidden, lines

from kvcheck.tasks import TASKS
from kvcheck.tasks.ruler.fit import SLOTS


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", NIAH)
def test_a_haystack_hides_the_keys_and_values_of_the_table(name, length, tokenizer):
    keys, values, asked, key, value, hay = HAYSTACKS[name]
    for index in range(3):
        sample = sample_of(name, tokenizer, index, length)
        found = hidden(sample)
        assert all(re.fullmatch(key, each) for each in found)
        assert all(re.fullmatch(value, each) for values_of in found.values() for each in values_of)
        assert {len(each) for each in found.values()} == {values}
        assert len(sample.turns[0].references) == asked * values
        assert len(found) == keys if keys else len(found) >= 3
        plain_lines = [line for line in lines(sample) if not NEEDLE.fullmatch(line)]
        assert {"noise": set(plain_lines) == {BLOCK}, "needles": not plain_lines, "essay": len(plain_lines) == 1}[hay]


@pytest.mark.parametrize("name", NIAH)
def test_reading_the_haystack_answers(name, tokenizer):
    for sample in samples(name, tokenizer, 10):
        (turn,) = sample.turns
        found = hidden(sample)
        asked = re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)+", turn.question)
        assert asked == re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)+", turn.lead)
        assert len(asked) == HAYSTACKS[name][2]
        assert sorted(turn.references) == sorted(value for key in asked for value in found[key])


@pytest.mark.parametrize("name", NIAH)
def test_no_value_stands_twice(name, tokenizer):
    for sample in samples(name, tokenizer, 10):
        values = [value for values_of in hidden(sample).values() for value in values_of]
        assert len(set(values)) == len(values)


def test_the_wording_is_singular_where_one_value_is_asked(tokenizer):
    one = sample_of("ruler/niah_multikey_1", tokenizer)
    many = sample_of("ruler/niah_multivalue", tokenizer)
    assert "remember the number in" in one.context
    assert one.turns[0].lead.endswith(" is")
    assert "remember the numbers in" in many.context
    assert many.turns[0].lead.endswith(" are")


def test_needles_visit_every_depth_once_in_forty_samples(tokenizer):
    depths = sorted(sample.turns[0].depth for sample in samples("ruler/niah_single_2", tokenizer, SLOTS, 4096))
    assert depths == pytest.approx([slot / (SLOTS - 1) for slot in range(SLOTS)], abs=0.03)


def test_a_very_long_haystack_of_needles_has_longer_keys():
    sample = TASKS.get("ruler/niah_multikey_2").generate(0, 0, 70_000, PIECES)
    found = hidden(sample)
    assert all(re.fullmatch(r"[a-z]+-[a-z]+-[a-z]+", key) for key in found)
    assert {len(values) for values in found.values()} == {1}
