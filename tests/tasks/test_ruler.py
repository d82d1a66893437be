"""The 13 tasks of RULER: length contract, counts of the table, and answers that a solver of its own finds."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from statistics import mean

import pytest

from kvcheck.conformance import models
from kvcheck.errors import KvcheckError, SpecError
from kvcheck.models.encoder import Encoder
from kvcheck.plugin.parse import READERS
from kvcheck.record import CaseId
from kvcheck.tasks import TASKS, lexicon
from kvcheck.tasks.metrics import METRICS, score
from kvcheck.tasks.profiles import PROFILES, cases, infos
from kvcheck.tasks.ruler import TASKS as RULER
from kvcheck.tasks.ruler.counting import shares
from kvcheck.tasks.ruler.fit import SLOTS, distinct, largest
from kvcheck.tasks.ruler.words import made_up, plain
from kvcheck.tasks.semantic_retrieval import RELATIONS

NAMES = tuple(task.info.name for task in RULER)
NIAH = tuple(name for name in NAMES if "niah" in name)
LENGTHS = (512, 1024, 4096)

# tokens that an answer may have; metric
TABLE = {
    **dict.fromkeys(NIAH, (128, "string_match_all")),
    "ruler/vt": (30, "string_match_all"),
    "ruler/cwe": (120, "string_match_all"),
    "ruler/fwe": (50, "string_match_all"),
    "ruler/qa_1": (32, "string_match_part"),
    "ruler/qa_2": (32, "string_match_part"),
}
# niah: keys (None: nothing but needles), values per key, keys asked, pattern of a key, pattern of a value, haystack
WORDS, NUMBER = r"[a-z]+-[a-z]+", r"\d{7}"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
HAYSTACKS = {
    "ruler/niah_single_1": (1, 1, 1, WORDS, NUMBER, "noise"),
    "ruler/niah_single_2": (1, 1, 1, WORDS, NUMBER, "essay"),
    "ruler/niah_single_3": (1, 1, 1, WORDS, UUID, "essay"),
    "ruler/niah_multikey_1": (4, 1, 1, WORDS, NUMBER, "essay"),
    "ruler/niah_multikey_2": (None, 1, 1, WORDS, NUMBER, "needles"),
    "ruler/niah_multikey_3": (None, 1, 1, UUID, UUID, "needles"),
    "ruler/niah_multivalue": (1, 4, 1, WORDS, NUMBER, "essay"),
    "ruler/niah_multiquery": (4, 1, 4, WORDS, NUMBER, "essay"),
}
# digests of the first sample at 1,024 tokens: the same bytes on every machine; a change needs a new task version
GOLDEN = {
    "ruler/niah_single_1": "5d509877f194",
    "ruler/niah_single_2": "c2d10fa94090",
    "ruler/niah_single_3": "863f912381e3",
    "ruler/niah_multikey_1": "537616d5d2de",
    "ruler/niah_multikey_2": "8a76b6836ca2",
    "ruler/niah_multikey_3": "a472fce16ef7",
    "ruler/niah_multivalue": "b0b88e6f6d90",
    "ruler/niah_multiquery": "651b8a13f021",
    "ruler/vt": "263b5f3b6a03",
    "ruler/cwe": "124add185ab2",
    "ruler/fwe": "ba85e6b913da",
    "ruler/qa_1": "a60ef87ecc44",
    "ruler/qa_2": "a88c5a2aa827",
}
NEEDLE = re.compile(r"A (?:number|uuid) for (\S+) is (\S+)\.")
BLOCK = " ".join(lexicon.NOISE)


class Pieces:
    """Another tokenizer: words with their blank in pieces of four letters, digits in threes, every mark by itself."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        found = re.findall(r" ?[A-Za-z]{1,4}| ?\d{1,3}|\.\.\.|\s|[^\sA-Za-z\d]", text)
        return [self.ids.setdefault(piece, len(self.ids)) for piece in found]

    def decode(self, ids) -> str:
        known = list(self.ids)
        return "".join(known[token] for token in ids)


PIECES = Pieces()


@pytest.fixture(params=["embedded", "pieces"])
def any_tokenizer(request, tokenizer):
    return tokenizer if request.param == "embedded" else PIECES


@cache
def sample_of(name, tokenizer, index=0, length=1024, seed=7):
    return TASKS.get(name).generate(seed, index, length, tokenizer)


def samples(name, tokenizer, count=40, length=1024, seed=7):
    return [sample_of(name, tokenizer, index, length, seed) for index in range(count)]


def graded(turn, answer):
    return score(turn.metric, answer, turn.references, turn.options)


def total(sample, tokenizer):
    """Tokens as RULER counts them: prompt, beginning of the answer, longest answer."""
    (turn,) = sample.turns
    texts = (sample.context, turn.question, turn.lead)
    return sum(len(tokenizer.encode(text)) for text in texts) + turn.max_new_tokens


def unit(name, sample, tokenizer):
    """Tokens of the largest piece by which the haystack can have grown."""
    if name == "ruler/cwe":
        entries = re.findall(r" \d+\. [a-z]+", sample.context)
        return 3 * max(len(tokenizer.encode(entry)) for entry in entries) + 3
    if name == "ruler/fwe":  # one more word to share out can be one more of several words
        return 4 * len(tokenizer.encode(" abcdef"))
    if "qa" in name:
        pieces = sample.context.split("\n\n")
    else:
        pieces = re.split(r"\n|(?<=\.) (?!The sky|The sun|Here|There)", sample.context.rpartition("Text:")[2])
        pieces = [piece for piece in pieces if HAYSTACKS.get(name, " ")[-1] != "essay" or not NEEDLE.match(piece)]
    return max(len(tokenizer.encode("\n\n" + piece)) for piece in pieces) + 1


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [*LENGTHS, 700, 2049])
@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_answer_fit_the_length_as_nearly_as_the_haystack_allows(name, length, any_tokenizer):
    for index in range(3):
        sample = sample_of(name, any_tokenizer, index, length)
        slack = length - total(sample, any_tokenizer)
        assert 0 <= slack < unit(name, sample, any_tokenizer)


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_prompt_encoded_at_once_fits_too(name, any_tokenizer):
    sample = sample_of(name, any_tokenizer)
    (turn,) = sample.turns
    whole = any_tokenizer.encode(sample.context + turn.question + turn.lead + turn.space + turn.expected)
    assert len(whole) <= 1024


@pytest.mark.parametrize("name", NAMES)
def test_a_length_too_short_is_refused_with_what_is_needed(name, tokenizer):
    with pytest.raises(SpecError, match=r"needs \d+ tokens"):
        TASKS.get(name).generate(0, 0, 100, tokenizer)


@pytest.mark.parametrize("name", NAMES)
def test_answers_have_the_tokens_and_the_metric_of_the_table(name):
    limit, metric = TABLE[name]
    for sample in samples(name, PIECES, 4):
        (turn,) = sample.turns
        assert (turn.max_new_tokens, turn.metric) == (limit, metric)
        assert TASKS.get(name).info.binary == (METRICS[metric].binary or len(turn.references) == 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_right_answer_fits_the_tokens_that_it_may_have(name, any_tokenizer):
    for sample in samples(name, any_tokenizer, 10):
        (turn,) = sample.turns
        assert len(any_tokenizer.encode(turn.space + turn.expected)) < turn.max_new_tokens + 1


@pytest.mark.parametrize("name", NAMES)
def test_the_declaration_says_at_most_and_without_other_questions(name):
    info = TASKS.get(name).info
    assert not info.exact
    assert info.modes == ("single", "multi_request")


# -- needles -----------------------------------------------------------------------------------------------------------


def lines(sample):
    return sample.context.partition("Text:")[2].strip("\n").split("\n")


def hidden(sample):
    """key -> values, as the haystack gives them."""
    found: dict[str, list[str]] = {}
    for key, value in NEEDLE.findall(sample.context):
        found.setdefault(key, []).append(value)
    return found


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


# -- variables ---------------------------------------------------------------------------------------------------------


def traced(text):
    """variable -> value, every assignment followed to its number."""
    known: dict[str, str] = {}
    for name, given in re.findall(r"([A-Z]{5}) = (\w+)\.", text):
        known[name] = known.get(given, given)
    return known


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


# -- words -------------------------------------------------------------------------------------------------------------


def counted(text):
    return Counter(re.findall(r" \d+\. ([a-z]+)", text))


def listing(sample):
    """The asked list, without the solved example."""
    return sample.context.rpartition("List:")[2]


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


# -- documents ---------------------------------------------------------------------------------------------------------


def documents(sample):
    found = re.findall(r"Document (\d+):\n(.*)", sample.context)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [text for _, text in found]


def relation_of(question):
    """The relation that is asked, and the person."""
    for relation, (_, asked, _, _) in RELATIONS.items():
        if match := re.search(re.escape(asked).replace(r"\{\}", "(.+)"), question):
            return relation, match.group(1)
    raise AssertionError(question)


def told(text, person, relation):
    """What a text says of a person."""
    wordings = "|".join(RELATIONS[relation][0])
    return re.findall(rf"\b{person} (?:{wordings}) (\w+)\.", text)


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


# -- honest answers ----------------------------------------------------------------------------------------------------


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


# -- seeds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes_on_every_machine(name, tokenizer):
    sample = TASKS.get(name).generate(0, 0, 1024, tokenizer)
    assert hashlib.sha256(repr(sample).encode()).hexdigest()[:12] == GOLDEN[name]


def test_the_tokenizer_of_an_engine_gives_the_same_bytes(tokenizer):
    encoder = Encoder(models.tokenizer())
    for name in ("ruler/niah_multikey_3", "ruler/qa_2"):
        assert TASKS.get(name).generate(7, 0, 1024, encoder) == sample_of(name, tokenizer)


@pytest.mark.parametrize("name", NAMES)
def test_two_seeds_give_different_samples(name, tokenizer):
    first, second = (samples(name, tokenizer, 5, seed=seed) for seed in (1, 2))
    assert len({sample.digest for sample in (*first, *second)}) == 10


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_depends_neither_on_the_others_nor_on_the_global_generator(name, tokenizer):
    random.seed(0)
    state = random.getstate()
    alone = TASKS.get(name).generate(7, 5, 1024, tokenizer)
    assert random.getstate() == state
    assert samples(name, tokenizer, 6)[5] == alone


# -- where they are found ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_known_by_its_exact_name(name):
    assert TASKS.get(name).info.name == name
    assert name in TASKS


def test_the_thirteen_tasks_are_listed_nowhere():
    assert len(NAMES) == 13
    assert not [name for name in TASKS.names() if "/" in name]


@pytest.mark.parametrize("profile", PROFILES)
def test_no_profile_runs_them_unasked(profile):
    assert not [case for case in cases(profile) if "/" in case.task]
    assert {info.name for info in infos()} == set(TASKS.names())


def test_they_are_not_imported_unasked():
    code = (
        "import sys; from kvcheck.tasks import TASKS; from kvcheck.tasks.profiles import cases; "
        "[cases(profile) for profile in ('quick', 'default', 'full')]; 'kv' in TASKS; "
        "sys.exit('kvcheck.tasks.ruler' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_their_cases_are_made_when_they_are_asked_for():
    found = cases("default", tasks=["ruler/vt", "kv"], lengths=[1024], modes=["single"])
    assert [str(case) for case in found] == [
        "kv/v1/single/len=1024/seed=0/n=8",
        "ruler/vt/v1/single/len=1024/seed=0/n=8",
    ]


def test_a_case_with_a_slash_in_its_task_reads_back():
    case = CaseId("ruler/niah_single_1", 1, "multi_request", 4096, 0, 8)
    assert CaseId.parse(str(case)) == case


@pytest.mark.parametrize("text", ["ruler//vt", "/vt", "ruler/", "a/b/c"])
def test_a_case_with_more_slashes_is_refused(text):
    with pytest.raises(SpecError, match="not a case id"):
        CaseId.parse(f"{text}/v1/single/len=512/seed=0/n=1")


@pytest.mark.parametrize("wrong", ["ruler/vtt", "ruler/niah_single_4"])
def test_a_wrong_name_is_refused_with_the_nearest_right_one(wrong):
    for ask in (TASKS.get, lambda name: READERS["tasks"](name, "--kv-tasks", "tasks")):
        with pytest.raises(SpecError, match=r"did you mean .*ruler/"):
            ask(wrong)


def test_the_option_takes_their_names():
    assert READERS["tasks"]("ruler/vt,kv", "--kv-tasks", "tasks") == ("ruler/vt", "kv")


@pytest.mark.parametrize("room", [5, 6, 49, 50, 1000, 4321])
def test_the_largest_size_that_fits_is_found(room):
    def cost(size):
        return 5 + size + size * size // 7

    assert largest(cost, room, 0) == max(size for size in range(200) if cost(size) <= room)


def test_the_search_looks_little_farther_than_what_fits():
    seen = []

    def cost(size):
        seen.append(size)
        return 100 + 17 * size

    assert largest(cost, 58_000, 3) == 3405
    assert max(seen) < 3405 * 1.12


def test_words_that_are_used_up_are_an_error():
    drawn = distinct(lambda: "only")
    assert next(drawn) == "only"
    with pytest.raises(KvcheckError, match="1 different words"):
        next(drawn)


def test_no_size_fits_where_the_least_one_does_not():
    assert largest(lambda size: 5 + size, 4, 0) is None
