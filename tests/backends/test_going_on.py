"""The full cache goes on from the turn before: a conversation is fed once, and its numbers are those of the whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from kvcheck.backends.transformers import Session
from kvcheck.backends.transformers.prefill import Dense, Prefiller, Tail
from kvcheck.core.record import CaseId
from kvcheck.runner.case import Runner
from kvcheck.runner.seam import Question

SNAP = "snapkv:budget=16,window=4"
CONTEXT = 24


@pytest.fixture(autouse=True)
def inferring() -> Iterator[None]:
    """As cases run."""
    with torch.inference_mode():
        yield


@pytest.fixture
def fed(session: Session) -> Iterator[list[tuple[int, int]]]:
    """(rows, tokens) of every forward."""
    seen: list[tuple[int, int]] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(tuple((args[0] if args else kwargs["input_ids"]).shape))

    handle = session.loaded.model.register_forward_pre_hook(look, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.fixture
def dense(session: Session) -> Dense:
    """Two contexts."""
    draw = torch.Generator().manual_seed(0)
    return session.prefiller.context("two", torch.randint(4, 60, (2, CONTEXT), generator=draw), queries=False)


def tokens(count: int, seed: int) -> tuple[int, ...]:
    """Any tokens."""
    return tuple(random.Random(seed).choices(range(4, 60), k=count))


def talk(row: int, answers: list[tuple[int, ...]]) -> list[Question]:
    """A conversation in which the model says this; a reference has three tokens, a question five and one per row."""
    questions = [Question(row, 0, tokens(5 + row, row), tokens(3, 50 + row), 8)]
    for turn, answer in enumerate(answers, 1):
        last = questions[-1]
        last.answer, last.ended = list(answer), True
        questions.append(last.next(turn, tokens(5 + row, 10 * turn + row), tokens(3, 60 + turn + row), 8))
    return questions


def told(prefiller: Prefiller, dense: Dense, questions: list[Question]) -> list[Tail]:
    """What the full cache says of each, one after the other."""
    return [prefiller.tails(dense, [question], kv=False)[0] for question in questions]


def whole(prefiller: Prefiller, dense: Dense, question: Question) -> Tail:
    """The same with everything behind the context fed at once."""
    return prefiller._run(dense, [question], kv=False)[0]


RIGHT, WRONG, LONG, NONE = tokens(3, 50), tokens(4, 99), (*tokens(3, 50), *tokens(6, 98)), ()


@pytest.mark.parametrize("answer", [RIGHT, WRONG, LONG, NONE], ids=["right", "wrong", "right and more", "none"])
def test_a_later_turn_says_what_the_whole_conversation_says(
    session: Session, dense: Dense, answer: tuple[int, ...]
) -> None:
    questions = talk(0, [answer, WRONG, answer])
    for question, tail in zip(questions, told(session.prefiller, dense, questions), strict=True):
        at_once = whole(session.prefiller, dense, question)
        torch.testing.assert_close(tail.log_probs, at_once.log_probs, atol=2e-3, rtol=0)  # keys are kept in 16 bits
        torch.testing.assert_close(tail.logits, at_once.logits, atol=2e-3, rtol=1e-3)
        assert tail.said == question.said
        for kept, fresh in zip(tail.first(len(tail.said)), at_once.held, strict=True):
            for one, other in zip(kept, fresh, strict=True):
                torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)


def test_only_what_is_new_is_fed(session: Session, dense: Dense, fed: list[tuple[int, int]]) -> None:
    questions = talk(0, [RIGHT, WRONG, NONE])
    fed.clear()
    told(session.prefiller, dense, questions)
    first, right, wrong, none = fed
    assert first == (1, 5 + 3)
    assert right == (1, 5 + 3), "the answer is the reference, which was fed with the question before"
    assert wrong == (1, 4 + 5 + 3)
    assert none == (1, 5 + 3)


def test_a_tail_that_begins_as_the_turn_before_ends_still_feeds_the_token_that_answers(
    session: Session, dense: Dense, fed: list[tuple[int, int]]
) -> None:
    """The reference of the turn before was the answer and all of the next question."""
    first = Question(0, 0, tokens(5, 1), (*tokens(2, 2), *tokens(4, 3)), 8, answer=list(tokens(2, 2)), ended=True)
    second = first.next(1, tokens(4, 3), tokens(2, 4), 8)
    fed.clear()
    _, tail = told(session.prefiller, dense, [first, second])
    assert fed[-1] == (1, 1 + 2)
    torch.testing.assert_close(tail.log_probs, whole(session.prefiller, dense, second).log_probs, atol=2e-3, rtol=0)


def test_what_else_is_asked_changes_no_bit_of_a_later_turn(make_session: Callable[..., Session]) -> None:
    sessions = [make_session(), make_session()]
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 60, (2, CONTEXT), generator=draw)
    mine, others = talk(0, [RIGHT, WRONG, LONG]), talk(1, [WRONG, NONE, WRONG])
    together, alone = (session.prefiller.context("two", ids, queries=False) for session in sessions)
    for turn in range(4):
        wanted = sessions[0].prefiller.tails(together, [mine[0], others[0]] if not turn else [mine[turn]], kv=False)[0]
        pair = [mine[0], others[0]] if not turn else [others[turn], mine[turn]]
        found = sessions[1].prefiller.tails(alone, pair, kv=False)[0 if not turn else 1]
        assert torch.equal(wanted.log_probs, found.log_probs)


def test_a_conversation_whose_first_turn_is_not_known_is_fed_whole(
    session: Session, dense: Dense, fed: list[tuple[int, int]]
) -> None:
    last = talk(0, [RIGHT, WRONG])[-1]
    fed.clear()
    told(session.prefiller, dense, [last])
    told(session.prefiller, dense, [replace(last, reference=tokens(2, 7), before=None)])
    assert fed == [(1, len(last.said)), (1, len(last.tail) + 2)]


def test_writing_into_what_is_kept_of_a_turn_is_noticed(session: Session, dense: Dense) -> None:
    told(session.prefiller, dense, talk(0, [RIGHT, WRONG]))
    assert dense.sound
    last = list(dense.tails.values())[-1]
    last.held[1][0].mul_(0.5)
    assert not dense.sound


def test_a_case_feeds_no_history(
    runner: Runner, case: Callable[..., CaseId], fed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.run_case(case("multi_turn"), SNAP)
    count = sum(rows * length for rows, length in fed)
    runner.backend.memo.clear()
    fed.clear()
    monkeypatch.setattr(Prefiller, "goes_on", False)
    runner.run_case(case("multi_turn"), SNAP)
    assert count < sum(rows * length for rows, length in fed)
