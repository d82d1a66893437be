"""Records are compared where the same token ids were fed and the same rule graded; else what differs is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from building import record

from kvcheck.core.errors import NotComparable
from kvcheck.core.record import CaseId, CaseRecord
from kvcheck.core.settings import Settings
from kvcheck.judging.pairing import pair
from kvcheck.runner.case import find_task
from kvcheck.runner.prompts import Prompter, prompter
from kvcheck.tasks.metrics import METRICS, digest

FACTS = {"beginning": "token 0", "tokenizer": "LlamaTokenizer", "tokenizers": "0.21.4", "transformers": "5.23.0"}


def fed(ids: str | None, graded: str | None = "d" * 12, **facts: str) -> CaseRecord:
    mine = record([1.0, 0.0], "fp16")
    samples = tuple(replace(sample, fed=ids, graded=graded) for sample in mine.samples)
    return replace(mine, samples=samples, inputs=tuple(sorted((FACTS | facts).items())))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokenizers": "0.23.1"}, "tokenizers 0.21.4 there and 0.23.1 here"),
        ({"tokenizer": "TokenizersBackend"}, "the tokenizer is a LlamaTokenizer there and TokenizersBackend here"),
        (
            {"beginning": "no token of the tokenizer's own"},
            "prompts begin with token 0 there and no token of the tokenizer's own here",
        ),
        ({}, "kvcheck itself puts prompts together otherwise"),
    ],
)
def test_other_token_ids_are_not_comparable_and_the_reason_is_named(changed: dict[str, str], said: str) -> None:
    with pytest.raises(NotComparable, match="other token ids in sample 0") as refused:
        pair(fed("b" * 12, **changed), fed("a" * 12), "fp16")
    assert said in refused.value.message


def test_other_packages_with_the_same_token_ids_are_compared() -> None:
    assert len(pair(fed("a" * 12, tokenizers="0.23.1"), fed("a" * 12), "fp16")) == 2


@pytest.mark.parametrize("known", [("a" * 12, None), (None, "a" * 12), (None, None)])
def test_records_that_do_not_know_their_token_ids_are_compared_by_their_prompts(
    known: tuple[str | None, str | None],
) -> None:
    assert len(pair(fed(known[0]), fed(known[1]), "fp16")) == 2


def test_other_grading_is_not_comparable_where_both_know_it() -> None:
    with pytest.raises(NotComparable, match="graded otherwise in sample 0: another metric"):
        pair(fed("a" * 12, "e" * 12), fed("a" * 12), "fp16")
    assert len(pair(fed("a" * 12, None), fed("a" * 12), "fp16")) == 2


# -- what a run writes -------------------------------------------------------------------------------------------------


class Bytes:
    """A tokenizer of bytes. shift: another version of it."""

    eos: frozenset[int] = frozenset()
    facts = {"bytes": "1.0"}  # noqa: RUF012

    def __init__(self, bos: tuple[int, ...] = (0,), shift: int = 0) -> None:
        self.bos, self.shift = bos, shift

    def encode(self, text: str) -> list[int]:
        return [one + self.shift for one in text.encode()]

    def decode(self, ids: Any) -> str:
        return bytes(one - self.shift for one in ids).decode()


def asking(encoder: Bytes, mode: str = "multi_turn", task: str = "kv") -> tuple[Prompter, Any]:
    case, settings = CaseId(task, 1, mode, 2048, 0, 1), Settings()
    known = find_task(case, settings)
    sample = known.generate(0, 0, 2048, encoder)
    return prompter(known, case, sample, encoder, None, settings), sample


def digests(encoder: Bytes, mode: str = "multi_turn") -> tuple[str, str]:
    one, sample = asking(encoder, mode)
    return one.fed(sample), one.graded(sample)


@pytest.mark.parametrize("mode", ["single", "multi_turn", "multi_request"])
def test_the_digest_is_of_the_token_ids_with_their_beginning(mode: str) -> None:
    assert digests(Bytes(), mode) == digests(Bytes(), mode)
    assert digests(Bytes(bos=()), mode)[0] != digests(Bytes(), mode)[0]
    assert digests(Bytes(shift=1), mode)[0] != digests(Bytes(), mode)[0]
    assert digests(Bytes(bos=()), mode)[1] == digests(Bytes(), mode)[1]


def test_what_made_the_ids_is_what_the_engine_says_and_how_prompts_begin() -> None:
    assert asking(Bytes())[0].inputs == (("beginning", "token 0"), ("bytes", "1.0"))
    assert dict(asking(Bytes(bos=()))[0].inputs)["beginning"] == "no token of the tokenizer's own"


def test_a_case_says_what_it_was_fed_and_how_it_was_graded(
    runner: Any, case: Callable[..., CaseId], loaded: Any
) -> None:
    found = runner.run_case(case(n=2), "fp16")
    assert len({sample.fed for sample in found.samples} - {None}) == 2
    assert len({sample.graded for sample in found.samples} - {None}) == 1
    facts = dict(found.inputs)
    assert (facts["beginning"], facts["tokenizer"]) == ("token 0", type(loaded.tokenizer.tokenizer).__name__)
    assert {"tokenizers", "transformers"} <= facts.keys()


def test_another_rule_of_a_metric_grades_otherwise_and_another_comment_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = digests(Bytes())[1]
    monkeypatch.setitem(METRICS, "substring", replace(METRICS["substring"], doc="said otherwise"))
    digest.of_metric.cache_clear()
    assert digests(Bytes())[1] == before
    monkeypatch.setitem(METRICS, "substring", replace(METRICS["substring"], rule=METRICS["exact"].rule))
    digest.of_metric.cache_clear()
    after = digests(Bytes())[1]
    monkeypatch.undo()
    digest.of_metric.cache_clear()
    assert after != before


FUNCTIONS = '''
import re
WORD = re.compile({word!r})

def helper(text):
    """{doc}"""
    return WORD.sub({put!r}, text)

def rule(text):  # {doc}
    return helper(text) == "x"
'''


def test_the_digest_of_code_follows_what_it_calls_and_reads_and_leaves_out_words_about_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    def of(name: str, word: str = "a", put: str = "b", doc: str = "one") -> str:
        (tmp_path / f"{name}.py").write_text(FUNCTIONS.format(word=word, put=put, doc=doc))
        spec = importlib.util.spec_from_file_location("kvcheck.tasks.metrics.trial", tmp_path / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return digest.of_code(module.rule)

    usual = of("usual")
    assert of("described", doc="two") == usual
    assert len({usual, of("pattern", word="c"), of("constant", put="c")}) == 3
