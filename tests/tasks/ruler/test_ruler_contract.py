"""The 13 tasks of RULER keep to the length, to the tokens of an answer and to their seeds."""

from __future__ import annotations

import hashlib
import random

import pytest
from ruler_samples import LENGTHS, NAMES, NIAH, PIECES, sample_of, samples, total, unit

from kvcheck.conformance import models
from kvcheck.core.errors import SpecError
from kvcheck.models.encoder import Encoder
from kvcheck.tasks import TASKS
from kvcheck.tasks.metrics import METRICS

# tokens that an answer may have; metric
TABLE = {
    **dict.fromkeys(NIAH, (128, "string_match_all")),
    "ruler/vt": (30, "string_match_all"),
    "ruler/cwe": (120, "string_match_all"),
    "ruler/fwe": (50, "string_match_all"),
    "ruler/qa_1": (32, "string_match_part"),
    "ruler/qa_2": (32, "string_match_part"),
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
