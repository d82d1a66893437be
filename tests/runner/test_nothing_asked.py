"""Turns in which nothing is asked: nothing is generated, and how likely the reference is is all that is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tiny import TOY, toy

from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import MODES, CaseId
from kvcheck.runner.case import Runner
from kvcheck.runner.seam import Drift
from kvcheck.tasks.base import Sample, Task

Cases = Callable[..., CaseId]


def silent(seed: int, index: int, length: int, tokenizer: Any, turns: int = 3) -> Sample:
    sample = toy(seed, index, length, tokenizer)
    return replace(sample, turns=tuple(replace(turn, max_new_tokens=0, metric="") for turn in sample.turns))


@pytest.fixture
def asks_nothing(tasks: dict[str, Task]) -> Task:
    tasks["toy"] = Task(replace(TOY.info, scored=False), silent)
    return tasks["toy"]


@pytest.mark.parametrize("mode", MODES)
def test_there_are_no_answers_and_no_scores(mode: str, runner: Runner, case: Cases, asks_nothing: Task) -> None:
    record = runner.run_case(case(mode), "snapkv:budget=16,window=4")
    assert not record.scored
    turns = [turn for sample in record.samples for turn in sample.turns]
    assert len(turns) == 6 * (1 if mode == "single" else 3)
    assert {(turn.answer, turn.score, turn.ended) for turn in turns} == {("", 0.0, None)}
    assert all(turn.nll is not None and turn.agree is not None and turn.kl is not None for turn in turns)
    assert record.memory is not None
    assert record.memory.end_kv_bytes is None


def test_nothing_is_decoded(runner: Runner, case: Cases, asks_nothing: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvcheck.backends.transformers.contexts.decode", lambda *args: pytest.fail("decoded"))
    runner.run_case(case("multi_turn"), "fp16")


def test_the_likelihood_is_that_of_the_task_that_asks(
    make_runner: Callable[..., Runner], case: Cases, tasks: dict[str, Task]
) -> None:
    asked = make_runner().run_case(case("multi_request"), "h2o:budget=16")
    tasks["toy"] = Task(replace(TOY.info, scored=False), silent)
    quiet = make_runner().run_case(case("multi_request"), "h2o:budget=16")
    both = (
        [(turn.nll, turn.agree, turn.kl) for sample in one.samples for turn in sample.turns] for one in (asked, quiet)
    )
    assert next(both) == next(both)


def test_an_engine_without_log_probabilities_has_nothing_to_say(
    runner: Runner, case: Cases, asks_nothing: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "kvcheck.backends.transformers.contexts.Contexts.drift", lambda self, group: [Drift()] * len(group.questions)
    )
    with pytest.raises(KvcheckError, match="measures how likely its text is, and the engine gives no log-prob"):
        runner.run_case(case(), "fp16")


def test_a_task_that_asks_only_some_of_the_time_is_refused(runner: Runner, case: Cases, tasks: dict[str, Task]) -> None:
    tasks["toy"] = Task(TOY.info, silent)
    with pytest.raises(KvcheckError, match=r"toy: TaskInfo.scored is True, and a turn has max_new_tokens=0"):
        runner.run_case(case(), "fp16")
