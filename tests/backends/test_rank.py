"""The rank of the reference among the answers to the context's other questions, by likelihood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kvcheck.core.record import CaseId, CaseRecord
from kvcheck.runner.case import Runner
from kvcheck.tasks import find
from kvcheck.tasks.base import Sample, Task

Cases = Callable[..., CaseId]
Make = Callable[..., Runner]
METHODS = ("fp16", "snapkv:budget=8,window=4", "h2o:budget=12", "streaming_llm:sink=1,window=8")
"""Two of them evict while decoding, where answers of different lengths are not fed together."""


def turning(task: Task, by: int, ranked: bool) -> Task:
    """The same task, each question with the answer to the one that comes so many places later."""

    def generate(*given: Any) -> Sample:
        sample = task.generate(*given)
        answers = [turn.references for turn in sample.turns]
        turned = (answers[(at + by) % len(answers)] for at in range(len(answers)))
        return replace(
            sample, turns=tuple(replace(turn, references=one) for turn, one in zip(sample.turns, turned, strict=True))
        )

    return Task(replace(task.info, ranked=ranked), generate)


def likelihoods(record: CaseRecord, task: Task, runner: Runner) -> list[list[float]]:
    """Summed over the tokens of each answer, by context and turn."""
    samples = [runner.sample(task, record.case, sample.index) for sample in record.samples]
    return [
        [-(turn.nll or 0) * len(asked.expected.split()) for turn, asked in zip(one.turns, sample.turns, strict=True)]
        for one, sample in zip(record.samples, samples, strict=True)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_it_counts_the_answers_that_are_likelier(
    method: str, make_runner: Make, case: Cases, tasks: dict[str, Task]
) -> None:
    plain, by = tasks["toy"], []
    for places in range(3):
        tasks["toy"] = turning(plain, places, ranked=False)
        runner = make_runner()
        by.append(likelihoods(runner.run_case(case("multi_request"), method), tasks["toy"], runner))
    tasks["toy"] = turning(plain, 0, ranked=True)
    found = make_runner().run_case(case("multi_request"), method)
    for at, sample in enumerate(found.samples):
        for turn, one in enumerate(sample.turns):
            mine, *others = (each[at][turn] for each in by)
            assert one.rank == 1 + sum(other > mine for other in others)
    assert len({turn.rank for sample in found.samples for turn in sample.turns}) > 1


def test_nothing_else_of_a_record_changes(make_runner: Make, case: Cases, tasks: dict[str, Task]) -> None:
    plain = tasks["toy"]
    without = make_runner().run_case(case("multi_request"), METHODS[1])
    tasks["toy"] = turning(plain, 0, ranked=True)
    found = make_runner().run_case(case("multi_request"), METHODS[1])
    bare = [replace(sample, turns=tuple(replace(turn, rank=None) for turn in sample.turns)) for sample in found.samples]
    assert bare == list(without.samples)
    assert found.memory == without.memory


@pytest.mark.parametrize("mode", ["single", "multi_turn"])
def test_it_is_measured_where_every_question_meets_the_context_alone(
    mode: str, runner: Runner, case: Cases, tasks: dict[str, Task]
) -> None:
    tasks["toy"] = turning(tasks["toy"], 0, ranked=True)
    found = runner.run_case(case(mode), "fp16")
    assert {turn.rank for sample in found.samples for turn in sample.turns} == {None}


def test_answers_that_are_all_alike_have_no_rank(runner: Runner, case: Cases, tasks: dict[str, Task]) -> None:
    plain = tasks["toy"]

    def generate(*given: Any) -> Sample:
        sample = plain.generate(*given)
        return replace(sample, turns=tuple(replace(turn, references=("w1 w2",)) for turn in sample.turns))

    tasks["toy"] = Task(replace(plain.info, ranked=True), generate)
    found = runner.run_case(case("multi_request"), "fp16")
    assert {turn.rank for sample in found.samples for turn in sample.turns} == {None}


def test_pairs_that_hardly_a_small_model_recalls_are_ranked() -> None:
    assert find("completion/kv").info.ranked
    assert not find("kv").info.ranked
