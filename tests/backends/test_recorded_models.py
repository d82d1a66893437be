"""Baselines of a real checkpoint, from recording to judging, through the command line in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import save_talker

from kvcheck.core.paths import bundle

ROWS = bundle("fixtures") / "data" / "benchmarks"
KVCHECK = [sys.executable, "-m", "kvcheck.cli"]
Do = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Do:
    """Run a command in an empty folder."""
    for name in ("CI", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    repo = tmp_path / "repo"
    repo.mkdir()

    def call(*command: str | Path) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        return subprocess.run(
            words, cwd=repo, env=dict(os.environ), capture_output=True, text=True, timeout=300, check=False
        )

    return call


def record(do: Do, model: Path, *options: str) -> subprocess.CompletedProcess[str]:
    small = ("--suite=scbench/kv", f"--data={ROWS}", "--n=2", "--lengths=512", "--modes=multi_request")
    return do(*KVCHECK, "baselines", "record", f"--model={model}", *small, *options)


def judge(do: Do, model: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return do(
        sys.executable, "-m", "pytest", "--pyargs", "kvcheck.suites.test_string_retrieval", f"--kv-model={model}",
        "--kv-tasks=scbench/kv", f"--kv-data={ROWS}", "--kv-n=2", "--kv-lengths=512", "--kv-modes=multi_request",
        "--kv-budget=drop=100", "-p", "no:cacheprovider", *options,
    )  # fmt: skip


def test_a_checkpoint_is_recorded_listed_verified_published_and_judged(do: Do, tmp_path: Path) -> None:
    model = save_talker(tmp_path / "Tiny-7B")
    done = record(do, model, "--method=fp16,snapkv", "--budget=drop=100", "--to=own")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("pytest --pyargs kvcheck.suites.test_string_retrieval --kv-method=fp16 ")

    listed = do(*KVCHECK, "baselines", "list", "--baselines=own").stdout
    assert all(any(word in line for line in listed.splitlines() if "Tiny-7B-" in line) for word in ("fp16", "snapkv"))

    shared = (tmp_path / "shared").as_uri()
    assert do(*KVCHECK, "baselines", "push", "--from=own", f"--to={shared}").returncode == 0
    verified = do(*KVCHECK, "baselines", "verify", f"--baselines={shared}")
    assert verified.returncode == 0, verified.stderr

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = model.rename(elsewhere / model.name)
    judged = judge(do, moved, "--kv-method=snapkv", f"--kv-baselines=mine,{shared}")
    assert judged.returncode == pytest.ExitCode.TESTS_FAILED, judged.stdout + judged.stderr
    assert "1 failed, 1 passed" in judged.stdout, (
        "a model of random weights shows nothing, and its case repeats its record"
    )
    assert "fp16 is not surely above chance" in judged.stdout
    assert "own record   identical in 1 of 1 case" in judged.stdout


def test_recording_exits_as_pytest_does(do: Do, tmp_path: Path) -> None:
    done = record(do, save_talker(tmp_path / "Tiny-7B"), "--", "--no-such-option")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR


def test_recording_says_where_fp16_is_far_from_what_was_published(do: Do, tmp_path: Path) -> None:
    model, rows = save_talker(tmp_path / "Mistral-7B-Instruct-v0.2"), tmp_path / "rows" / "longbench"
    (rows / "config").mkdir(parents=True)
    row = json.loads((ROWS / "longbench" / "hotpotqa.jsonl").read_text("utf-8").splitlines()[0])
    lines = [json.dumps({**row, "_id": f"row{at}", "answers": ["an answer that nobody gives"]}) for at in range(30)]
    (rows / "hotpotqa.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    prompts = {"hotpotqa": "Read: {context}\nAsked: {input}\nAnswer:"}
    (rows / "config" / "dataset2prompt.json").write_text(json.dumps(prompts), "utf-8")
    done = do(
        *KVCHECK, "baselines", "record", f"--model={model}", "--suite=longbench/hotpotqa", f"--data={rows.parent}",
        "--n=30", "--lengths=31500", "--modes=single", "--to=own",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "your fp16 on longbench/hotpotqa is 36.5 points under the published 36.53" in said
    assert "check the chat template" in said
