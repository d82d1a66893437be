"""A user's fp16 run is held against published scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvcheck.core.errors import BaselineError
from kvcheck.core.record import CaseId, CaseRecord, SampleRecord, TurnRecord
from kvcheck.store import published
from kvcheck.store.published import Published, gaps, read

MODEL = "mistralai/Mistral-7B-Instruct-v0.2"


def fp16(task: str, scores: list[float], method: str = "fp16", length: int = 31500, mode: str = "single") -> CaseRecord:
    samples = tuple(SampleRecord(at, "d", (TurnRecord(score, ""),)) for at, score in enumerate(scores))
    case = CaseId(task, 1, mode, length, 0, len(scores))
    return CaseRecord(case, method, "m", "semantic_retrieval", True, False, 0.0, samples)


def test_a_run_far_under_the_paper_is_told_what_to_check() -> None:
    (line,) = gaps([fp16("longbench/qasper", [0.1, 0.2, 0.15, 0.12] * 50)], MODEL)
    assert "15.2 points under the published 29.41" in line
    assert "KIVI docs" in line
    assert "chat template" in line
    assert "31500 tokens" in line


def test_a_run_far_above_the_paper_is_told_too() -> None:
    (line,) = gaps([fp16("longbench/qasper", [0.9, 0.8] * 50)], MODEL)
    assert "above" in line


def test_a_run_within_chance_of_the_paper_is_left_alone() -> None:
    assert gaps([fp16("longbench/qasper", [0.0, 0.6] * 100)], MODEL) == []


def test_one_context_says_nothing() -> None:
    assert gaps([fp16("longbench/qasper", [0.0])], MODEL) == []


def test_a_folder_of_the_same_name_is_the_model() -> None:
    records = [fp16("longbench/qasper", [0.0, 0.01] * 50)]
    assert len(gaps(records, "/models/Mistral-7B-Instruct-v0.2/")) == 1
    assert gaps(records, "/models/another") == []


def test_what_a_method_scores_is_compared_with_nothing_published() -> None:
    assert gaps([fp16("longbench/qasper", [0.0, 0.01] * 50, method="snapkv")], MODEL) == []


def test_the_mean_of_a_suite_needs_all_of_its_tasks() -> None:
    known = [Published("o/m", "ruler_4096", 95.0, "paper", tasks=2)]
    part = [fp16("ruler_4096/vt", [0.5, 0.4] * 50, length=4096)]
    assert gaps(part, "o/m", known) == []
    assert gaps([*part, fp16("ruler_8192/cwe", [0.5, 0.4] * 50, length=8192)], "o/m", known) == []
    (line,) = gaps([*part, fp16("ruler_4096/cwe", [0.5, 0.4] * 50, length=4096)], "o/m", known)
    assert "50.0 points under the published 95" in line


def test_the_mean_of_a_capability_takes_the_tasks_of_that_capability_only() -> None:
    known = [Published("o/m", "scbench", 57.1, "paper", mode="multi_turn", tasks=2, capability="string_retrieval")]
    other = fp16("scbench/qa_eng", [0.1, 0.2] * 50, mode="multi_turn")
    mine = [replace(other, case=replace(other.case, task=f"scbench/{name}")) for name in ("kv", "vt")]
    assert gaps([other, *mine], "o/m", known) == []
    (line,) = gaps([other, *(replace(one, capability="string_retrieval") for one in mine)], "o/m", known)
    assert "your fp16 on scbench string_retrieval is 42.1 points under the published 57.1" in line


def test_another_prompt_limit_or_wording_is_compared_with_nothing_published() -> None:
    assert gaps([fp16("longbench/qasper", [0.0, 0.01] * 50, length=512)], MODEL) == []
    ours = replace(fp16("longbench/qasper", [0.0, 0.01] * 50), switches=(("template", "kvcheck/v1"),))
    assert gaps([ours], MODEL) == []


def test_a_few_right_answers_are_no_gap() -> None:
    assert gaps([fp16("longbench/triviaqa", [1.0] * 8)], MODEL) == []


def test_a_published_mode_is_compared_with_that_mode_only() -> None:
    known = [Published("o/m", "scbench/kv", 57.0, "paper", mode="multi_turn")]
    assert gaps([fp16("scbench/kv", [0.1, 0.2] * 50)], "o/m", known) == []
    assert len(gaps([fp16("scbench/kv", [0.1, 0.2] * 50, mode="multi_turn")], "o/m", known)) == 1


def test_every_shipped_score_names_its_source_and_lies_in_range() -> None:
    scores = published.shipped()
    assert len(scores) >= 100
    assert all(one.source and 0 < one.score <= 100 and "/" in one.model for one in scores)
    assert len({(one.model, one.task, one.mode, one.capability) for one in scores}) == len(scores)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "published.toml"
    path.write_text('[["a/b"]]\nsource = 3\n"longbench/qasper" = "high"\n')
    with pytest.raises(BaselineError, match=r"published\.toml"):
        read(path)


@pytest.mark.parametrize("name", ["o/m", "/data/M", "m", "m-3f2a1b9c"])
def test_a_model_is_known_by_its_id_its_folder_and_what_reports_call_it(name: str) -> None:
    known = [Published("o/m", "longbench/qasper", 57.0, "paper")]
    assert len(gaps([fp16("longbench/qasper", [0.1, 0.2] * 50)], name, known)) == 1


@pytest.mark.parametrize("name", ["o/m-chat", "m-3f2a1b9c-x", "am"])
def test_a_model_of_another_name_is_not_compared(name: str) -> None:
    known = [Published("o/m", "longbench/qasper", 57.0, "paper")]
    assert gaps([fp16("longbench/qasper", [0.1, 0.2] * 50)], name, known) == []
