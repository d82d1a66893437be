"""Answers that are graded again: forged scores are found, and what cannot be graded is never whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvcheck.cli.commands import main
from kvcheck.core.paths import bundle
from kvcheck.core.record import CaseId, CaseRecord, cost_case, cost_record
from kvcheck.core.settings import Settings
from kvcheck.judging import rescoring
from kvcheck.judging.rescoring import NotVerified, Rescorer, encoder_at_hand
from kvcheck.store import baselines
from kvcheck.store.baselines import FileStore, ModelId

SHIPPED = FileStore(bundle("baselines"))
MINI = next(entry.model for entry in SHIPPED.entries() if entry.model.name == "mini")
KV = CaseId("kv", 1, "multi_turn", 512, 0, 8)
GRADED = CaseId("summary", 1, "multi_turn", 512, 0, 8)


@pytest.fixture(scope="module")
def rescorer() -> Rescorer:
    return Rescorer(encoder_at_hand(MINI))


def stored(method: str = "streaming_llm", case: CaseId = KV) -> CaseRecord:
    record = SHIPPED.get(MINI, method, case)
    assert record is not None
    return record


def forged(record: CaseRecord, at: int, change: Callable[[int], dict[str, Any]]) -> CaseRecord:
    """The record with the turns of one context changed; change: from a turn's place to its new fields."""
    samples = list(record.samples)
    turns = [replace(turn, **change(place)) for place, turn in enumerate(samples[at].turns)]
    samples[at] = replace(samples[at], turns=tuple(turns))
    return replace(record, samples=tuple(samples))


@pytest.mark.parametrize(
    "case", [KV, GRADED, replace(KV, mode="multi_request"), replace(KV, length=2048, n=4)], ids=str
)
@pytest.mark.parametrize("method", ["fp16", "streaming_llm", "kivi"])
def test_what_is_shipped_is_right(rescorer: Rescorer, method: str, case: CaseId) -> None:
    assert rescorer.problems(stored(method, case)) == []


def test_scores_of_nought_beside_right_answers_are_found(rescorer: Rescorer) -> None:
    found = rescorer.problems(forged(stored("fp16"), 2, lambda place: {"score": 0.0}))
    assert found[0] == "context 2, turn 1: the score is 0, and substring gives the answer 1"


def test_scores_that_were_swapped_are_found(rescorer: Rescorer) -> None:
    record = stored("streaming_llm", GRADED)
    scores = [[turn.score for turn in sample.turns] for sample in record.samples]
    at, other = next((a, b) for a in range(8) for b in range(8) if scores[a] != scores[b])
    swapped = forged(
        forged(record, at, lambda t: {"score": scores[other][t]}), other, lambda t: {"score": scores[at][t]}
    )
    assert any(f"context {at}" in problem for problem in rescorer.problems(swapped))


def test_a_score_off_by_one_in_the_last_place_that_is_stored_is_found(rescorer: Rescorer) -> None:
    record = stored("streaming_llm", GRADED)
    at = next(at for at, sample in enumerate(record.samples) if sample.turns[0].score < 1)
    off = forged(record, at, lambda t: {"score": record.samples[at].turns[t].score + 1e-4} if t == 0 else {})
    assert len(rescorer.problems(off)) == 1


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("subtask", "other", "the subtask is 'other'"),
        ("depth", 0.123, "the depth is 0.123"),
        ("answer", "", "score is 1"),
    ],
)
def test_a_turn_that_is_not_its_questions_is_found(rescorer: Rescorer, field: str, value: Any, words: str) -> None:
    assert words in rescorer.problems(forged(stored("fp16"), 0, lambda place: {field: value}))[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chance": 0.5}, "chance is 0.5"),
        ({"binary": False}, "binary is False"),
        ({"capability": "needle"}, "capability is needle"),
        ({"case": replace(KV, seed=7)}, "its prompts are other ones"),
        ({"case": replace(KV, length=513)}, "its prompts are other ones"),
        ({"case": replace(KV, length=100_000)}, "tokens were seen in contexts of 100000"),
        ({"case": replace(KV, mode="single")}, "4 answers to 1 questions"),
        ({"memory": None}, "its bytes are missing"),
    ],
)
def test_a_record_that_is_not_of_its_task_is_found(rescorer: Rescorer, change: dict[str, Any], words: str) -> None:
    assert words in rescorer.problems(replace(stored("fp16"), **change))[0]


def test_a_context_under_another_index_is_found(rescorer: Rescorer) -> None:
    record = stored("fp16")
    twice = replace(record.samples[0], index=1)
    assert "context 1: its prompts" in rescorer.problems(replace(record, samples=(record.samples[0], twice)))[0]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (replace(stored("fp16"), case=replace(KV, task="mine")), "unknown task 'mine'"),
        (replace(stored("fp16"), case=replace(KV, version=9)), "the task kv is at version 1 here"),
        (replace(stored("fp16"), case=replace(KV, task="longbench/qasper")), "is read from a public data set"),
        (cost_record("fp16", MINI.fingerprint, cost_case(512), None, ()), "what a context costs has no answers"),
    ],
)
def test_what_cannot_be_generated_is_not_verified_with_the_reason(
    rescorer: Rescorer, record: CaseRecord, words: str
) -> None:
    with pytest.raises(NotVerified, match=words):
        rescorer.problems(record)


def test_other_data_than_a_record_names_is_not_verified(rescorer: Rescorer, tmp_path: Path) -> None:
    record = replace(stored("fp16"), case=replace(KV, task="longbench/qasper", length=4096), switches=(("data", "x"),))
    with pytest.raises(NotVerified):
        Rescorer(rescorer.encoder, Settings(data=str(tmp_path))).problems(record)


def test_prompts_are_generated_once_for_all_modes_and_methods(
    rescorer: Rescorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, calls = Rescorer(rescorer.encoder), list[int]()
    usual = rescoring.find("kv")
    counted = replace(usual, generate=lambda *given: calls.append(given[1]) or usual.generate(*given))
    monkeypatch.setattr(rescoring, "find", lambda *_, **__: counted)
    for method in ("fp16", "kivi"):
        for mode in ("multi_turn", "multi_request"):
            assert fresh.problems(stored(method, replace(KV, mode=mode))) == []
    assert calls == list(range(8))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ModelId("tiny-3f2a1b9c", "3f2a1b9c00112233"), "is not on this machine"),
        (ModelId("nobody/nothing", "3f2a1b9c00112233"), "is not on this machine"),
        (ModelId("mini", "3f2a1b9c00112233"), "of this fingerprint .* is not on this machine: .*mini is another one"),
    ],
)
def test_a_model_that_is_not_at_hand_is_said(model: ModelId, words: str) -> None:
    with pytest.raises(NotVerified, match=words):
        encoder_at_hand(model)


def test_a_model_in_a_folder_is_found_where_it_is_named() -> None:
    assert encoder_at_hand(
        ModelId(f"mini-{MINI.fingerprint[:8]}", MINI.fingerprint), [str(bundle("fixtures") / "mini")]
    )


class TestTheCommand:
    """`kvcheck baselines verify`, over two shipped cases and nothing else."""

    @pytest.fixture
    def own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileStore:
        monkeypatch.setattr(baselines, "bundle", lambda name: tmp_path / "nothing")
        store = FileStore(tmp_path / "own")
        for method in ("fp16", "streaming_llm"):
            store.record(MINI, method, [stored(method)], "all", {"kvcheck": "0.1.0", "packages": {}})
        return store

    def test_right_answers_are_whole(self, own: FileStore, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["baselines", "verify", "--baselines", own.root]) == 0
        out = capsys.readouterr().out
        assert out == "2 files, all readable and whole: 2 cases graded again on prompts generated anew\n"

    def test_a_forged_score_is_named_with_its_file(self, own: FileStore, capsys: pytest.CaptureFixture[str]) -> None:
        zero = stored("fp16")
        for at in range(8):
            zero = forged(zero, at, lambda place: {"score": 0.0})
        own.record(MINI, "fp16", [zero], "all", {"kvcheck": "0.1.0", "packages": {}})
        assert main(["baselines", "verify", "--baselines", own.root]) == 1
        told = capsys.readouterr()
        assert "fp16.txt: kv/v1/multi_turn/len=512/seed=0/n=8: context 0, turn 1: the score is 0" in told.err
        assert "whole" not in told.out

    def test_what_was_not_graded_is_counted_and_not_whole(
        self, own: FileStore, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = ModelId("tiny-3f2a1b9c", "3f2a1b9c00112233")
        theirs = replace(stored("fp16"), model=other.fingerprint)
        own.record(other, "fp16", [theirs], "all", {"kvcheck": "0.1.0", "packages": {}})
        assert main(["baselines", "verify", "--baselines", own.root]) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert first == "3 files, all readable: 2 cases graded again on prompts generated anew, 1 not verified"
        assert second.startswith("not verified: 1 case in ")
        assert second.endswith("the model tiny-3f2a1b9c is not on this machine (--model FOLDER says where it is)")
