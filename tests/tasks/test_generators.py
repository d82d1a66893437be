"""The rules for honest synthetic tasks, checked without a model."""

from __future__ import annotations

import hashlib
import random
import re
import zlib
from functools import cache
from statistics import mean

import pytest

from kvcheck.core.errors import SpecError
from kvcheck.fixtures.training import seeds
from kvcheck.tasks import TASKS
from kvcheck.tasks.metrics import METRICS, score
from kvcheck.tasks.semantic_retrieval import RELATIONS

NAMES = TASKS.names()
LENGTHS = (512, 1024, 2048)
DIALOGUES = ("dialogue", "tool_log")
# the digests of the first sample at 512 tokens: the same bytes on every machine; a change needs a new task version
GOLDEN = {
    "choice": "5f7abf4a0f2f",
    "code_and_kv": "69e949d752d7",
    "code_completion": "61bf77ac3abf",
    "code_function": "0a567dbf1428",
    "dialogue": "3da1e1e6933d",
    "few_shot": "8b77b09cde8d",
    "kv": "402e9fb1484a",
    "many_shot": "4ea60ed5c196",
    "math_find": "a56f4591e98f",
    "multi_hop": "9bbf778aeeb8",
    "needle": "c2df0437e817",
    "needle_64": "650f945cf7dc",
    "needle_multi": "803e604b582a",
    "path_trace": "7d1d7fb2e51d",
    "prefix_suffix": "d3250eb9a562",
    "qa_multi": "a4a5d2461187",
    "qa_single": "135a96a593bb",
    "qa_zh": "9f6c90c5a903",
    "summary": "664bcc16c4af",
    "summary_with_needles": "52f15bc2b8f2",
    "tool_log": "17dcbbb631a1",
}
FACT = re.compile(r"(?<= )([A-Z]\w+ [A-Z]\w+) (\w+ (?:the|in|as|to)) (\w+)\.")
KINDS = {words: relation for relation, (wordings, _, lead, _) in RELATIONS.items() for words in (*wordings, lead)}


@cache
def sample_of(name, tokenizer, index, length, seed):
    return TASKS.get(name).generate(seed, index, length, tokenizer)


def samples(name, tokenizer, count=40, length=512, seed=7):
    return [sample_of(name, tokenizer, index, length, seed) for index in range(count)]


def told_before(sample, turn):
    """What stands in the turns before one, up to their questions."""
    return " ".join(one.question.partition("\nQuestion")[0] for one in sample.turns[: sample.turns.index(turn)])


def graded(turn, answer):
    return score(turn.metric, answer, turn.references, turn.options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_context_has_exactly_the_tokens_that_were_asked_for(name, length, tokenizer):
    for sample in samples(name, tokenizer, 4, length):
        assert len(tokenizer.encode(sample.context)) == length


@pytest.mark.parametrize("length", [700, 997, 1501])
def test_any_length_can_be_asked_for(length, tokenizer):
    for name in NAMES:
        sample = TASKS.get(name).generate(0, 0, length, tokenizer)
        assert len(tokenizer.encode(sample.context)) == length, name


@pytest.mark.parametrize("name", NAMES)
def test_a_context_too_short_for_the_evidence_is_refused(name, tokenizer):
    with pytest.raises(SpecError, match=r"needs \d+ tokens"):
        TASKS.get(name).generate(0, 0, 12, tokenizer)


@pytest.mark.parametrize("name", NAMES)
def test_an_oracle_scores_one(name, tokenizer):
    for sample in samples(name, tokenizer, 8):
        for turn in sample.turns:
            assert graded(turn, turn.expected) == pytest.approx(1.0)


@pytest.mark.parametrize("name", NAMES)
def test_empty_and_constant_answers_score_no_more_than_chance(name, tokenizer):
    found = samples(name, tokenizer)
    for answer in ("", "yes", "47", "alpha", "A", "Paris"):
        got = mean(graded(turn, answer) for sample in found for turn in sample.turns)
        assert got <= max(1.3 * TASKS.get(name).info.chance, TASKS.get(name).info.chance + 0.08), answer


def kind(name, turn):
    """Questions that ask for the same form of answer."""
    return turn.question if name == "math_find" else turn.subtask


@pytest.mark.parametrize("name", NAMES)
def test_a_closed_book_answer_of_the_right_form_scores_at_the_declared_chance(name, tokenizer):
    """The answers of other contexts stand for a model that knows the form and has not read the context."""
    rng = random.Random(0)
    found = samples(name, tokenizer, 80)
    got = []
    for place, sample in enumerate(found):
        for turn in sample.turns:
            others = [other for index, another in enumerate(found) if index != place for other in another.turns]
            pool = [other.expected for other in others if kind(name, other) == kind(name, turn)]
            got += [graded(turn, rng.choice(pool)) for _ in range(4)]
    chance = TASKS.get(name).info.chance
    assert mean(got) <= chance * 1.15 + 0.02
    assert chance <= mean(got) * 2.5 + 0.03


@pytest.mark.parametrize("name", [name for name in NAMES if "multi_turn" in TASKS.get(name).info.modes])
def test_the_nearest_distractor_does_not_answer(name, tokenizer):
    """The answer of another question on the same context has the same form and must not do."""
    got = [
        graded(turn, other.expected)
        for sample in samples(name, tokenizer)
        for turn in sample.turns
        for other in sample.turns
        if other is not turn and other.subtask == turn.subtask
    ]
    assert mean(got) <= TASKS.get(name).info.chance + 0.05


@pytest.mark.parametrize("name", NAMES)
def test_copying_the_last_sentence_scores_no_more_than_chance(name, tokenizer):
    got = [
        graded(turn, re.split(r"[.;\n。]", sample.context.rstrip(".;\n。"))[-1].strip())
        for sample in samples(name, tokenizer)
        for turn in sample.turns
    ]
    at_the_end = 0.1 if name in ("needle", "needle_64") else 0.0  # one depth in ten of their grid is the last sentence
    assert mean(got) <= TASKS.get(name).info.chance + at_the_end + 0.08


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_stands_in_the_evidence_and_not_in_the_question(name, tokenizer):
    for sample in samples(name, tokenizer, 10):
        for turn in sample.turns:
            if turn.subtask == "" and name in ("choice", "few_shot", "many_shot"):
                continue  # options are listed in the question; labels have many demonstrations, no single evidence
            evidence = " ".join(sample.context[start:end] for start, end in turn.evidence)
            if name in DIALOGUES and not turn.evidence:
                evidence = told_before(sample, turn)
            for reference in turn.references:
                words = re.findall(r"\w+", reference)
                assert all(word in evidence for word in words if word != "in"), (turn.question, reference)
                assert reference not in turn.question


@pytest.mark.parametrize("name", NAMES)
def test_questions_on_one_context_have_different_answers_to_find(name, tokenizer):
    for sample in samples(name, tokenizer, 10):
        assert len({turn.question for turn in sample.turns}) == len(sample.turns)


def test_the_asked_key_stands_once_in_the_context(tokenizer):
    for sample in samples("kv", tokenizer, 20):
        for turn in sample.turns:
            key = re.search(r"value of (\w+ \w+)\?", turn.question).group(1)
            assert len(re.findall(rf" {key}=", sample.context)) == 1


def test_a_string_is_the_only_one_with_its_prefix_and_suffix(tokenizer):
    for sample in samples("prefix_suffix", tokenizer, 20):
        strings = re.findall(r" (\w+ \w+ \w+);", sample.context)
        for turn in sample.turns:
            start, end = re.search(r"starts with (\w+) and ends in (\w+)\?", turn.question).groups()
            both = [text for text in strings if text.split()[0] == start and text.split()[-1] == end]
            one = [text for text in strings if (text.split()[0] == start) != (text.split()[-1] == end)]
            assert len(both) == 1
            assert len(one) >= 3


def test_a_solver_finds_the_same_path(tokenizer):
    for sample in samples("path_trace", tokenizer, 6):
        edges = dict(re.findall(r" (\w+) to (\w+);", sample.context))
        (turn,) = sample.turns
        node = re.search(r"Path from (\w+)", turn.question).group(1)
        trace = []
        while (node := edges[node]) != "end":
            trace.append(node)
        assert tuple(trace) == turn.references


def test_the_extremes_are_those_of_the_array(tokenizer):
    for sample in samples("math_find", tokenizer, 20):
        values = [int(value) for value in re.findall(r"reading=(\d+)", sample.context)]
        largest, smallest = (int(turn.references[0]) for turn in sample.turns)
        assert (largest, smallest) == (max(values), min(values))
        assert values.count(largest) == values.count(smallest) == 1


def test_the_newest_fact_is_asked_for(tokenizer):
    """A solver that reads a dialogue in its order, and lets each sentence replace what was so before."""
    for sample in samples("dialogue", tokenizer, 10):
        known, changed = {}, 0
        for turn in sample.turns:
            told, _, question = turn.question.rpartition("\nQuestion: ")
            for person, words, answer in FACT.findall(f"{sample.context if turn is sample.turns[0] else ''} {told}"):
                before = known.get((person, KINDS[words]), answer)
                changed += before != answer and turn is not sample.turns[0]
                known[person, KINDS[words]] = answer
            person, words = re.search(r"Answer: (\w+ \w+) (\w+ \w+)", question).groups()
            assert turn.references == (known[person, KINDS[words]],)
        assert changed == 5


def test_the_last_quarter_of_a_dialogue_asks_for_what_the_context_said(tokenizer):
    for name in DIALOGUES:
        for sample in samples(name, tokenizer, 4):
            assert all(turn.evidence and turn.question.startswith("\nQuestion") for turn in sample.turns[15:])
            assert sum(not turn.evidence for turn in sample.turns[:15]) >= 6


def test_later_turns_ask_for_calls_that_are_further_behind(tokenizer):
    for sample in samples("tool_log", tokenizer, 4):
        told = [re.findall(r"code of (\w+) is \d", turn.question) for turn in sample.turns]
        asked = [re.search(r"What is the code of (\w+)", turn.question).group(1) for turn in sample.turns]
        behind = [at - told.index([name]) for at, name in enumerate(asked) if [name] in told]
        assert behind == [2, 3, 4, 5, 6, 7]


def test_turns_of_one_number_take_as_many_tokens_in_every_context(tokenizer):
    for name in DIALOGUES:
        sizes = {tuple(len(tokenizer.encode(turn.question)) for turn in one.turns) for one in samples(name, tokenizer)}
        assert len(sizes) == 1


def test_a_long_answer_has_hundreds_of_tokens(tokenizer):
    sample = TASKS.get("path_trace").generate(0, 0, 1200, tokenizer)
    assert len(tokenizer.encode(sample.turns[0].expected)) >= 300


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_fits_the_tokens_that_it_may_have(name, tokenizer):
    for sample in samples(name, tokenizer, 6):
        for turn in sample.turns:
            assert len(tokenizer.encode(turn.space + turn.expected)) < turn.max_new_tokens + 1


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes_on_every_machine(name, tokenizer):
    sample = TASKS.get(name).generate(0, 0, 512, tokenizer)
    assert hashlib.sha256(repr(sample).encode()).hexdigest()[:12] == GOLDEN[name]


@pytest.mark.parametrize("name", NAMES)
def test_two_seeds_give_different_samples(name, tokenizer):
    first, second = (samples(name, tokenizer, 10, seed=seed) for seed in (1, 2))
    assert not {sample.digest for sample in first} & {sample.digest for sample in second}


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_the_others(name, tokenizer):
    task = TASKS.get(name)
    alone = task.generate(3, 5, 512, tokenizer)
    assert samples(name, tokenizer, 6, seed=3)[5] == alone


@pytest.mark.parametrize("name", NAMES)
def test_evidence_of_different_questions_lies_at_different_depths(name, tokenizer):
    depths = [
        start / len(sample.context)
        for sample in samples(name, tokenizer, 30)
        for turn in sample.turns
        for start, _ in turn.evidence
    ]
    assert min(depths, default=0) < 0.15
    assert max(depths, default=1) > 0.85


def test_needles_cover_the_depth_grid(tokenizer):
    depths = sorted(sample.turns[0].depth for sample in samples("needle", tokenizer, 10, 2048))
    assert depths == pytest.approx([step / 9 for step in range(10)], abs=0.06)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "qa_zh"])
def test_there_are_two_kinds_of_filler(name, tokenizer):
    """Repetitive contexts compress well, random ones do not."""
    sizes = [len(zlib.compress(s.context.encode())) / len(s.context) for s in samples(name, tokenizer, 4, 2048)]
    assert max(sizes) > min(sizes) * 1.03


def test_training_draws_from_seeds_that_no_test_uses():
    assert seeds.TRAIN_SEED > seeds.PROBE_SEED > seeds.LAST_TEST_SEED


@pytest.mark.parametrize("name", NAMES)
def test_training_samples_are_not_test_samples(name, tokenizer):
    tested = {sample.digest for sample in samples(name, tokenizer, 30, seed=0)}
    trained = {sample.digest for sample in samples(name, tokenizer, 30, seed=seeds.TRAIN_SEED)}
    assert not tested & trained


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_of_a_task_is_known(name, tokenizer):
    for sample in samples(name, tokenizer, 2):
        for turn in sample.turns:
            assert turn.metric in METRICS
