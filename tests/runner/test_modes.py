"""Contexts, questions and conversations: what is fed to which cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from kvcheck.backends.transformers import Session, work
from kvcheck.backends.transformers import session as session_module
from kvcheck.cache.shape import ModelShape
from kvcheck.core.record import MODES, CaseId, CaseRecord
from kvcheck.runner.case import Runner

SPECS = (
    "fp16",
    "snapkv:budget=16,window=4",
    "streaming_llm:window=12,sink=2",
    "h2o:budget=16",
    "kivi:group=16,residual=16",
)
"""Full, chosen per head, a window, one that evicts while decoding, and packed codes."""


def answers(record: CaseRecord) -> list[list[str]]:
    return [[turn.answer for turn in sample.turns] for sample in record.samples]


@pytest.fixture
def by_hand(session: Session, runner: Runner) -> Callable[..., list[list[int]]]:
    """A conversation with one sample, fed to a cache of the method's own prefill, token by token."""

    def talk(spec: str, index: int, case: CaseId) -> list[list[int]]:
        loaded, sample = session.loaded, runner.samples["toy", 1, case.seed, case.length, index]
        encode, model = loaded.tokenizer.encode, loaded.model
        cache = session_module.find_method(spec).build(ModelShape.of(model.config))
        fed = [*loaded.tokenizer.bos, *encode(sample.context), *encode(sample.turns[0].question)]
        told = []
        for turn, asked in enumerate(sample.turns):
            if turn:
                fed += encode(sample.separator + asked.question)
            answer: list[int] = []
            while True:
                with torch.inference_mode():
                    token = int(model(torch.tensor([fed]), past_key_values=cache).logits[0, -1].argmax())
                fed = []
                if token in loaded.tokenizer.eos:
                    break
                answer.append(token)
                fed = [token]
                if len(answer) == asked.max_new_tokens:
                    break
            told.append(answer)
        return told

    return talk


@pytest.mark.parametrize("spec", SPECS)
def test_a_conversation_equals_a_hand_written_loop(
    session: Session, runner: Runner, case: Callable[..., CaseId], by_hand: Callable[..., Any], spec: str
) -> None:
    wanted = case("multi_turn")
    record = runner.run_case(wanted, spec)
    decode = session.loaded.tokenizer.decode
    for sample in record.samples:
        told = by_hand(spec, sample.index, wanted)
        assert [turn.answer for turn in sample.turns] == [decode(answer).removeprefix(" ") for answer in told]


def test_answers_end_in_both_ways(runner: Runner, case: Callable[..., CaseId]) -> None:
    record = runner.run_case(case("multi_turn"), "fp16")
    lengths = [len(answer.split()) for turns in answers(record) for answer in turns]
    assert 6 in lengths, "no answer reached max_new_tokens"
    assert min(lengths) < 6, "no answer was ended by an end token"


SETTINGS = [(mode, spec, "mode") for mode in MODES for spec in SPECS]
SETTINGS += [("multi_turn", SPECS[3], "no"), ("multi_request", SPECS[1], "yes")]


@pytest.mark.parametrize(("mode", "spec", "aware"), SETTINGS)
def test_batching_never_changes_an_answer(
    make_runner: Callable[..., Runner],
    case: Callable[..., CaseId],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    spec: str,
    aware: str,
) -> None:
    together = make_runner(query_aware=aware).run_case(case(mode, n=5), spec)
    monkeypatch.setattr(work, "CONTEXTS", 1)
    monkeypatch.setattr(work, "ROWS", 1)
    alone = make_runner(query_aware=aware).run_case(case(mode, n=5), spec)
    assert answers(together) == answers(alone)
    for left, right in zip(together.samples, alone.samples, strict=True):
        for one, other in zip(left.turns, right.turns, strict=True):
            assert (one.nll, one.kl) == (pytest.approx(other.nll, abs=1e-3), pytest.approx(other.kl, abs=1e-3))
    assert together.memory is not None
    assert alone.memory is not None
    assert together.memory.apart == pytest.approx(alone.memory.apart, abs=1e-3)
    assert replace(together.memory, apart=None) == replace(alone.memory, apart=None)


def test_single_asks_the_first_question_only(runner: Runner, case: Callable[..., CaseId]) -> None:
    record = runner.run_case(case("single"), "fp16")
    assert [len(sample.turns) for sample in record.samples] == [1] * 6


def test_turn_one_is_the_same_in_single_and_multi_turn(runner: Runner, case: Callable[..., CaseId]) -> None:
    single = runner.run_case(case("single"), SPECS[1])
    conversation = runner.run_case(case("multi_turn"), SPECS[1])
    assert [turns[0] for turns in answers(single)] == [turns[0] for turns in answers(conversation)]


def test_the_question_is_visible_at_compression_when_the_mode_or_the_user_says_so(
    make_runner: Callable[..., Runner], case: Callable[..., CaseId]
) -> None:
    seen = {}
    for aware in ("mode", "yes", "no"):
        for mode in MODES:
            record = make_runner(query_aware=aware).run_case(case(mode, n=1), "streaming_llm:window=12,sink=2")
            assert record.memory is not None
            seen[aware, mode] = (record.query_aware, record.memory.seen > 41)
    assert seen["mode", "single"] == seen["mode", "multi_turn"] == (True, True)
    assert seen["mode", "multi_request"] == (False, False)
    assert {seen["yes", mode] for mode in MODES} == {(True, True)}
    assert {seen["no", mode] for mode in MODES} == {(False, False)}


def test_a_method_that_cannot_share_the_prefill_runs_its_own(
    session: Session, runner: Runner, case: Callable[..., CaseId], methods: dict[str, Any]
) -> None:
    from dataclasses import replace

    from kvcheck.methods.snapkv import SnapKV

    class Own(SnapKV):
        info = replace(SnapKV.info, shares_prefill=False)

    methods["own"] = lambda: Own(budget=16, window=4)
    for mode in MODES:
        shared = answers(runner.run_case(case(mode), SPECS[1]))
        before = session.prefiller.forwards
        assert answers(runner.run_case(case(mode), "own")) == shared
        assert session.prefiller.forwards - before == 6, "once per context, however many questions"
