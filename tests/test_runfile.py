"""Run files come back exactly."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from building import record, run

from kvcheck.core.errors import BaselineError, KvcheckError
from kvcheck.core.record import LatencyRecord, Run
from kvcheck.judging.budget import Budget, judge
from kvcheck.store.run_file import (
    case_from_json,
    dumps,
    read_run,
    run_from_json,
    run_to_json,
    verdicts_from_json,
    write_run,
)


def full_run() -> Run:
    mine = record([1 / 3, 2 / 3], nll=0.1 + 0.2)
    mine = replace(
        mine,
        latency=(LatencyRecord("ttft", 1024, 0.1, 0.2, 0.5, 0.4, 0.6, 9),),
        not_measured=(("kl", "no fp16"),),
        stopped="time",
    )
    base = record([1.0, 1.0], "fp16")
    verdicts = judge(mine, base, None, Budget(bytes=0.3))
    return replace(run(base, mine), verdicts={f"{mine.case}|snapkv": verdicts}, failures={"x": "答案\n«»"})


def test_a_run_comes_back_equal(tmp_path: Path) -> None:
    write_run(tmp_path / "run.json", full_run())
    assert read_run(tmp_path / "run.json") == full_run()


def test_the_same_run_gives_the_same_bytes() -> None:
    a, b = full_run(), full_run()
    assert run_to_json(a) == run_to_json(replace(b, cases=b.cases[::-1]))


def test_an_empty_run_comes_back() -> None:
    assert run_from_json(run_to_json(run())) == run()


def test_a_record_rides_on_one_line() -> None:
    mine = full_run().cases[1]
    assert "\n" not in dumps(mine)
    assert case_from_json(dumps(mine)) == mine


def test_verdicts_ride_on_one_line() -> None:
    (verdicts,) = full_run().verdicts.values()
    assert verdicts_from_json(dumps(verdicts)) == verdicts


def test_nan_is_never_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumps(record([float("nan")]))


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(run_to_json(full_run())[:-40])
    with pytest.raises(BaselineError, match=r"run\.json is not a whole run file"):
        read_run(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(KvcheckError, match=r"none\.json cannot be read"):
        read_run(tmp_path / "none.json")


def test_another_schema_is_refused() -> None:
    text = run_to_json(full_run()).replace('"schema":1', '"schema":9')
    with pytest.raises(BaselineError, match="has schema 9"):
        run_from_json(text)


@pytest.mark.parametrize(("old", "new"), [('"score":1.0', '"score":"1"'), ('"chance"', '"chanse"'), ("kv/v1", "kv")])
def test_a_field_of_another_kind_is_refused(old: str, new: str) -> None:
    with pytest.raises(BaselineError, match="cannot be read"):
        run_from_json(run_to_json(full_run()).replace(old, new))


def test_a_run_without_a_header_is_refused() -> None:
    with pytest.raises(BaselineError, match="not a kvcheck run file"):
        run_from_json("[]")


def test_a_disk_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BaselineError, match="No space left"):
        write_run(path, full_run())
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("run.json", "old")]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"score":1.0', '"score":1e999', "not a whole run file.*is not a number"),
        ('"score":1.0', '"score":' + "9" * 400, "not a whole run file.*is not a number"),
        ('"score":1.0', '"score":' + "[" * 50_000 + "]" * 50_000, "not a whole run file.*nested too deeply"),
        ('"score":1.0', '"score":2', "context 0: score is 2.0, not a number from 0 to 1"),
        ('"score":1.0', '"score":1.0,"score":0.0', "not a whole run file.*'score' is there twice"),
        ('"index":1', '"index":0', "in order, each once"),
        ('"kv_bytes":', '"kv_bytes":-', "memory: kv_bytes is -"),
        ('"dense_bytes":1000', '"dense_bytes":0', "memory: dense_bytes is 0"),
        ('"snapkv","model"', '"fp16","model"', "of fp16 is there twice"),
        ('"verdicts": {', '"verdicts": [], "x": {', "cannot be read"),
        ('"packages":{', '"packages":[], "y":{', "cannot be read"),
    ],
)
def test_a_value_that_no_run_writes_is_refused_by_name(old: str, new: str, words: str) -> None:
    text = run_to_json(full_run())
    assert old in text
    with pytest.raises(BaselineError, match=words) as caught:
        run_from_json(text.replace(old, new), "run.json")
    assert caught.value.message.startswith("run.json ")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KvcheckError, match="a folder is in the place of the file"):
        read_run(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        with pytest.raises(KvcheckError, match="a pipe or a device"):
            read_run(tmp_path / "pipe.json")
