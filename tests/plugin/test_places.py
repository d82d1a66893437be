"""Several places of baselines: one's own is read and recorded first, a shared one below it is only read."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from typing import Any

import fsspec
import pytest

from kvcheck.cli.commands import main

Run = Callable[..., pytest.RunResult]
Behave = Callable[[dict[str, Any]], None]
OWN = "--kv-baselines=own,stored"
ONE = ("--kv-method=snapkv", "--kv-modes=single", "--kv-budget=drop=100")


@pytest.fixture
def shared(recorded: Run, repo: pytest.Pytester) -> str:
    """The recorded store, published where nobody records."""
    uri = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(str(repo.path / "stored"), uri.removeprefix("memory:/"), recursive=True)
    return uri


def test_a_shared_store_at_an_address_is_judged_by(recorded: Run, repo: pytest.Pytester, shared: str) -> None:
    shutil.rmtree(repo.path / "stored")
    recorded_nowhere = f"--kv-baselines=own,{shared}"
    repo.runpytest(
        "--pyargs", "kvcheck.suites.test_string_retrieval", "--kv-tasks=kv", "--kv-lengths=512", "--kv-n=8", *ONE,
        recorded_nowhere,
    ).assert_outcomes(passed=1)  # fmt: skip


def test_recording_goes_to_the_first_place_and_leaves_the_shared_one(recorded: Run, repo: pytest.Pytester) -> None:
    recorded(*ONE, OWN, "--kv-record=new").assert_outcomes(passed=1)
    assert [path.name for path in repo.path.glob("*/fake/snapkv.txt")] == ["snapkv.txt"]
    assert (repo.path / "own" / "fake" / "snapkv.txt").exists()


def test_ones_own_record_is_preferred_to_the_shared_one(recorded: Run, repo: pytest.Pytester, behave: Behave) -> None:
    recorded(*ONE, "--kv-record=new").assert_outcomes(passed=1)
    behave({"snapkv": 0.0})
    recorded(*ONE, OWN, "--kv-record=changed").assert_outcomes(passed=1)
    recorded(*ONE, OWN).assert_outcomes(passed=1)
    worse = recorded(*ONE, "--kv-alpha=0.5")
    worse.assert_outcomes(failed=1)
    worse.stdout.fnmatch_lines(["*accuracy drop against its own record*"])


def test_recording_into_an_address_is_refused_before_anything_is_measured(
    recorded: Run, repo: pytest.Pytester, shared: str
) -> None:
    result = recorded(*ONE, f"--kv-baselines={shared}", "--kv-record=new")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{shared} is read-only*", f"*kvcheck baselines push --from FOLDER --to {shared}*"])
    assert not (repo.path / "ran.txt").exists()


def test_a_place_below_the_first_must_be_there(recorded: Run) -> None:
    result = recorded(*ONE, "--kv-baselines=stored,typo")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*there is no folder typo*"])


def test_places_can_stand_in_the_projects_table(recorded: Run, repo: pytest.Pytester) -> None:
    (repo.path / "pyproject.toml").write_text('[tool.kvcheck]\nbaselines = ["own", "stored"]\n')
    result = repo.runpytest(
        "--pyargs", "kvcheck.suites.test_string_retrieval", "--kv-tasks=kv", "--kv-lengths=512", "--kv-n=8", *ONE
    )
    result.assert_outcomes(passed=1)


def test_what_a_folder_holds_is_promoted_to_the_shared_store(
    recorded: Run, repo: pytest.Pytester, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repo.path)
    recorded(*ONE, f"--kv-baselines=own,{shared}", "--kv-record=new").assert_outcomes(passed=1)
    assert main(["baselines", "push", "--from", "own", "--to", shared]) == 0
    shutil.rmtree(repo.path / "own")
    again = recorded(*ONE, f"--kv-baselines=own,{shared}")
    again.stdout.fnmatch_lines(["*own record*identical in 1 of 1 case*"])
