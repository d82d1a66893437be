"""`kvcheck speed`: the table that a GPU fills, made whole on a CPU with a tiny shape."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvcheck.backends.transformers import Session
from kvcheck.backends.transformers import speed as engine_speed
from kvcheck.cli.commands import main
from kvcheck.core.errors import MethodFailed
from kvcheck.core.front import option
from kvcheck.methods.h2o import H2O
from kvcheck.plugin.timelimit import TimeLimit
from kvcheck.report import speed
from kvcheck.store.run_file import read_run, write_run

TINY = ("speed", "--model", "random:tiny", "--device", "cpu", "--rounds", "2", "--batch", "2")
METHODS = ("--methods", "snapkv:budget=0.25,window=16,fp16")


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests may be running under xdist, where latency is refused."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was weighed, in order."""
    found: list[str] = []
    weigh = Session.measure_memory

    def noted(self: Session, method: str, length: int) -> Any:
        found.append(f"{method} at {length}")
        return weigh(self, method, length)

    monkeypatch.setattr(Session, "measure_memory", noted)
    return found


def test_a_table_is_made_from_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, table = tmp_path / "speed.json", tmp_path / "speed.md"
    code = main([*TINY, *METHODS, "--lengths", "128,64", "--json", str(out), "--md", str(table)])
    assert code == 0
    shown = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in shown)
    text = table.read_text("utf-8")
    assert text.index("### 64 tokens; tokens/s of 2") < text.index("### 128 tokens")
    assert text.count("| `fp16` |") == text.count("| `snapkv:budget=0.25,window=16` |") == 4
    assert "roofline: not known: no bandwidth and peak are known for a CPU" in text
    run = read_run(out)
    assert [(one.case.length, one.method.partition(":")[0]) for one in run.cases] == [
        (64, "fp16"),
        (64, "snapkv"),
        (128, "fp16"),
        (128, "snapkv"),
    ]
    small = run.cases[-1]
    assert small.memory is not None
    assert small.memory.ratio == 0.25
    assert [(one.what, one.batch, one.rounds) for one in small.latency] == [
        ("ttft", 1, 2),
        ("tpot", 1, 2),
        ("throughput", 2, 2),
    ]
    assert "threads" in run.header.machine


def test_what_is_in_the_file_is_not_measured_again(tmp_path: Path, measured: list[str]) -> None:
    kept = ("--json", str(tmp_path / "speed.json"))
    main([*TINY, "--methods", "fp16", "--lengths", "64", *kept])
    main([*TINY, "--methods", "fp16,tova", "--lengths", "64,96", *kept])
    assert measured == ["fp16 at 64", "tova at 64", "fp16 at 96", "tova at 96"]
    assert len(read_run(tmp_path / "speed.json").cases) == 4


def test_an_interrupted_table_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Session, method: str, length: int, **how: Any) -> Any:
        if method == "tova":
            raise KeyboardInterrupt
        return latency(self, method, length, **how)

    latency = Session.measure_latency
    monkeypatch.setattr(Session, "measure_latency", interrupted)
    out = tmp_path / "speed.json"
    with pytest.raises(KeyboardInterrupt):
        main([*TINY, "--methods", "fp16,tova", "--lengths", "64", "--json", str(out)])
    assert [one.method for one in read_run(out).cases] == ["fp16"]


def test_a_row_that_fails_says_why_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], measured: list[str]
) -> None:
    def full(self: H2O, *given: Any) -> Any:
        raise MethodFailed("h2o ran out of device memory", f"fewer {option('lengths')}")

    with monkeypatch.context() as patch:
        patch.setattr(H2O, "layer", full)
        command = [*TINY, "--methods", "h2o,fp16", "--lengths", "64", "--json", str(tmp_path / "speed.json")]
        assert main(command) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "h2o: memory and latency not measured: h2o ran out of device memory; fewer --lengths" in shown
    assert main(command) == 1  # kept as it is
    assert main([*command, "--retry"]) == 0
    assert measured == ["h2o at 64", "fp16 at 64", "h2o at 64"]
    assert all(one.latency for one in read_run(tmp_path / "speed.json").cases)


def test_a_row_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "measure_memory", lambda *given: time.sleep(60))
    out = tmp_path / "speed.json"
    assert main([*TINY, "--methods", "fp16", "--lengths", "64", "--timeout", "0.05", "--json", str(out)]) == 1
    (row,) = read_run(out).cases
    assert dict(row.not_measured)["latency"] == "it took longer than 0.05 s (--timeout gives it more)"


def test_what_was_weighed_before_the_time_was_over_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "measure_latency", lambda *given, **how: time.sleep(60))
    out = tmp_path / "speed.json"
    assert main([*TINY, "--methods", "fp16", "--lengths", "64", "--timeout", "5", "--json", str(out)]) == 1
    (row,) = read_run(out).cases
    assert row.memory is not None
    assert [what for what, _ in row.not_measured] == ["latency"]


def test_a_row_that_raised_says_in_which_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(H2O, "layer", lambda *given: 1 // 0)
    assert main([*TINY, "--methods", "h2o", "--lengths", "64"]) == 1
    assert "modulo by zero; test_speed.py, line " in " ".join(capsys.readouterr().out.split())


def test_rows_measured_otherwise_are_not_put_into_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    command = [*TINY, "--methods", "fp16", "--lengths", "64", "--json", str(out)]
    main(command)
    before = out.read_bytes()
    assert main([*command, "--rounds", "3"]) == 2
    assert "was measured with another rounds: 2, now 3" in capsys.readouterr().err
    run = read_run(out)
    write_run(out, replace(run, header=replace(run.header, machine={**run.header.machine, "driver": "1"})))
    assert main(command) == 2
    assert "another machine" in capsys.readouterr().err
    assert json.loads(before)["header"]["settings"]["rounds"] == "2"


def test_the_roofline_stands_beside_what_was_measured(tmp_path: Path) -> None:
    """1 kB/s moves the cache of 64 tokens, 32,768 bytes, the weights and the written token in many seconds."""
    out = tmp_path / "speed.json"
    figures = ("--bandwidth", "1e-6", "--peak", "1")
    main([*TINY, "--methods", "fp16", "--lengths", "64", "--json", str(out), *figures])
    (full,) = read_run(out).cases
    floors = {one.what: one.floor for one in full.latency}
    weights = 4 * (2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256 + 2 * 128) + 128 + 1024 * 128)
    assert floors["ttft"] == pytest.approx((weights + 64 * 512) / 1000)
    assert floors["tpot"] == pytest.approx((weights + 65 * 512) / 1000)
    assert floors["throughput"] == pytest.approx((weights + 2 * 65 * 512) / 1000)


def test_a_method_that_reads_a_part_of_prompt_or_cache_has_no_roofline_there(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    figures = ("--bandwidth", "1", "--peak", "1")
    main([*TINY, "--methods", "a_shape,quest", "--lengths", "64", "--json", str(out), *figures])
    sparse, looked_up = read_run(out).cases
    assert [(one.what, one.floor is None) for one in sparse.latency] == [
        ("ttft", True),
        ("tpot", False),
        ("throughput", False),
    ]
    assert [one.floor is None for one in looked_up.latency] == [False, True, True]


def test_a_method_that_saves_memory_and_decodes_more_slowly_is_marked(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    main([*TINY, "--methods", "snapkv,fp16", "--lengths", "128", "--json", str(out)])
    run = read_run(out)
    full, small = run.cases
    marks = []
    for record in (small, full):
        for low in (0.99, 1.01):
            slow = tuple(replace(one, low=low, high=2.0) for one in record.latency)
            marks.append(speed.mark(replace(record, latency=slow)))
    assert marks == ["", speed.SLOWER, "", ""]
    slow = replace(small, latency=tuple(replace(one, low=1.01, high=2.0) for one in small.latency))
    assert any(line.startswith("slower: it saves memory") for line in speed.markdown(replace(run, cases=(slow,))))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--methods", "snapkw"), "did you mean snapkv?"),
        (("--methods", "snapkv:budget=7.0"), "budget=7.0"),
        (("--methods", "fp16", "--lengths", "12"), "--lengths: out of range: 12"),
        (("--methods", "fp16", "--rounds", "0"), "--rounds and --batch are numbers from 1 up"),
        (("--methods", "fp16", "--bandwidth", "10"), "one of --bandwidth and --peak is missing"),
        (("--methods", "fp16", "--model", "random:tiney"), "did you mean tiny?"),
        (("--methods", "fp16", "--json", f"{__file__}/speed.json"), "cannot be written: Not a directory"),
        (("--methods", "fp16", "--md", f"{__file__}/speed.md"), "cannot be written: Not a directory"),
        (("--methods", "fp16", "--md", str(Path(__file__).parent)), "is a folder"),
        (("--methods", "fp16", "--rope", "yearn:factor=2"), "--rope: unknown RoPE"),
        (("--methods", "fp16", "--rope", "yarn:factor=2"), "has random weights, on one device and with its own RoPE"),
        (("--methods", "fp16", "--trust-remote-code", "a/b"), "--trust-remote-code: a/b is not the model"),
    ],
)
def test_a_slip_is_said_before_anything_is_measured(
    options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], measured: list[str]
) -> None:
    assert main([*TINY, *options]) == 2
    assert said in capsys.readouterr().err
    assert not measured


def test_a_model_is_loaded_with_another_rope_and_kernel_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    mini = ("speed", "--model", "mini", "--device", "cpu", "--rounds", "1", "--batch", "1", "--lengths", "64")
    command = [*mini, "--methods", "fp16", "--rope", "linear:factor=2", "--json", str(out)]
    assert main([*command, "--attention", "math"]) == 0
    assert "model mini@linear:factor=2 (float32, attention math)" in capsys.readouterr().out
    assert main(command) == 2
    assert "was measured with another attention: math, now auto" in capsys.readouterr().err
    assert main([*mini, "--methods", "fp16", "--json", str(out), "--attention", "math"]) == 2
    assert "another model" in capsys.readouterr().err


def test_the_commit_is_that_of_the_folder_it_was_started_in_and_changes_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured before the changes stays, and the table says that there were some."""
    for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "1", "--allow-empty"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    commit = subprocess.run(
        ["git", "-C", str(tmp_path), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    monkeypatch.chdir(tmp_path)
    command = [*TINY, "--methods", "fp16", "--json", "speed.json", "--lengths"]
    assert main([*command, "64"]) == 0
    assert f", {commit[:12]}\n" in capsys.readouterr().out
    assert main([*command, "96"]) == 0  # speed.json itself is a change now
    assert f", {commit[:12]} with local changes\n" in capsys.readouterr().out
    assert read_run(tmp_path / "speed.json").header.dirty


def test_processes_of_torchrun_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], measured: list[str]
) -> None:
    """Each would print a table of its part, and write the same file."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main([*TINY, "--methods", "fp16"]) == 2
    assert "torchrun" in capsys.readouterr().err
    assert not measured


def test_what_a_row_left_behind_is_freed_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the time limit ended it."""
    told: list[str] = []

    def endless(self: Session, method: str, length: int) -> Any:
        told.append(method)
        raise TimeLimit

    monkeypatch.setattr(engine_speed, "let_go", lambda: told.append("freed"))
    monkeypatch.setattr(Session, "measure_memory", endless)
    main([*TINY, "--methods", "fp16,tova", "--lengths", "64"])
    assert told == ["freed", "fp16", "freed", "tova"]
