"""The engine as the plugin sees it: records, blocks, progress, latency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvcheck.backends.base import Engine
from kvcheck.backends.transformers import Session
from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.core.record import CaseId, CaseRecord
from kvcheck.core.settings import Settings
from kvcheck.runner.case import Runner


def test_a_session_opens_from_settings(folder: Path) -> None:
    session: Engine = Session.open(Settings(model=str(folder), device="cpu"))
    assert session.model_name == str(folder)
    assert len(session.fingerprint) == 16


def test_the_record_says_what_was_run(session: Session, runner: Runner, case: Callable[..., CaseId]) -> None:
    record = runner.run_case(case(), "snapkv:budget=16,window=4")
    assert (record.case, record.method, record.model) == (case(), "snapkv:budget=16,window=4", session.fingerprint)
    assert (record.capability, record.query_aware, record.binary, record.chance) == ("needle", True, True, 0.0)
    assert [sample.index for sample in record.samples] == list(range(6))
    assert len({sample.digest for sample in record.samples}) == 6
    assert record.stopped == "all samples"


def test_bytes_are_those_right_after_compression_per_context(runner: Runner, case: Callable[..., CaseId]) -> None:
    """Contexts of 41 tokens with BOS; 3 layers, 2 kv heads of 16, keys and values of 2 bytes: 384 bytes a token."""
    full = runner.run_case(case("multi_request"), "fp16").memory
    small = runner.run_case(case("multi_request"), "streaming_llm:window=12,sink=2").memory
    assert full is not None
    assert small is not None
    assert (full.kv_bytes, full.dense_bytes, full.kept, full.seen) == (41 * 384, 41 * 384, 41, 41)
    assert (small.kv_bytes, small.dense_bytes, small.kept, small.seen) == (14 * 384, 41 * 384, 14, 41)
    assert (small.layers, small.touched, small.peak_bytes) == (3, 3, None)


def test_a_method_that_keeps_everything_is_said_to_have_been_put_to_no_test(
    runner: Runner, case: Callable[..., CaseId]
) -> None:
    """A share of the prompt is at least window + 1: here that is all of it."""
    idle, acting = (runner.run_case(case(), f"snapkv:window={window}") for window in (100, 4))
    assert idle.not_measured == (("compression", "by its parameters the method keeps everything at this length"),)
    assert acting.not_measured == runner.run_case(case(), "fp16").not_measured == ()


def test_blocks_can_end_the_case(runner: Runner, case: Callable[..., CaseId]) -> None:
    seen: list[CaseRecord] = []
    done: list[tuple[int, int]] = []

    def look(record: CaseRecord) -> bool:
        seen.append(record)
        return len(record.samples) >= 8

    record = runner.run_case(case(n=20), "fp16", look, lambda *step: done.append(step))
    assert [len(each.samples) for each in seen] == [4, 8]
    assert done == [(4, 20), (8, 20)]
    assert record == seen[-1]
    assert record.stopped == "verdict clear"
    assert record.samples[:4] == seen[0].samples


def test_the_last_block_is_no_early_stop(runner: Runner, case: Callable[..., CaseId]) -> None:
    assert runner.run_case(case(n=4), "fp16", lambda record: True).stopped == "all samples"


def test_the_same_case_gives_the_same_record(make_runner: Callable[..., Runner], case: Callable[..., CaseId]) -> None:
    wanted = case("multi_turn")
    assert make_runner().run_case(wanted, "h2o:budget=16") == make_runner().run_case(wanted, "h2o:budget=16")


def test_more_samples_begin_with_the_same_ones(runner: Runner, case: Callable[..., CaseId]) -> None:
    few, many = (runner.run_case(case(n=n), "fp16") for n in (4, 8))
    assert few.samples == many.samples[:4]


def test_interrupting_keeps_what_was_measured(runner: Runner, case: Callable[..., CaseId]) -> None:
    kept: list[CaseRecord] = []

    def interrupt(record: CaseRecord) -> bool:
        kept.append(record)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run_case(case(n=8), "fp16", interrupt)
    assert len(kept[0].samples) == 4
    assert len(runner.run_case(case(n=8), "fp16").samples) == 8


def test_latency_comes_as_a_ratio_with_its_interval(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)  # these tests may be running under xdist themselves
    records = {record.what: record for record in session.measure_latency("streaming_llm:window=12,sink=2", 64)}
    assert set(records) == {"ttft", "tpot", "throughput"}
    assert [record.batch for record in records.values()] == [1, 1, 8]
    for record in records.values():
        assert record.length == 64
        assert record.seconds > 0
        assert record.low <= record.ratio <= record.high


def test_latency_is_refused_to_several_workers(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    with pytest.raises(KvcheckError, match="not measured with several workers: they slow each other down"):
        session.measure_latency("fp16", 64)


def test_latency_beyond_the_model_is_refused(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    for measure in (session.measure_latency, session.measure_memory):
        with pytest.raises(SpecError, match="the model has room for 512"):
            measure("fp16", 512)


def test_bytes_of_a_model_in_two_processes_are_those_of_both(session: Session) -> None:
    """The other process is made up; it holds as much as this one."""
    team = SimpleNamespace(size=1, gather=lambda value: [value, value])
    both = Session.of(replace(session.loaded, team=team), session.settings)  # type: ignore[arg-type]
    memory = both.measure_memory("fp16", 64)
    assert (memory.kv_bytes, memory.dense_bytes) == (2 * 64 * 384, 2 * 64 * 384)
