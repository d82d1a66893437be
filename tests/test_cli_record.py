"""`kvcheck baselines record` prints the pytest command that it stands for; bad names are refused before any loading."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcheck.cli.commands import main
from kvcheck.core.paths import bundle
from kvcheck.tasks import TASKS

ROWS = str(bundle("fixtures") / "data" / "benchmarks")
Told = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def not_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests may be running in CI, where recording is refused."""
    monkeypatch.delenv("CI", raising=False)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    """The words of the command that a recording stands for."""
    monkeypatch.chdir(tmp_path)

    def call(*options: str) -> list[str]:
        assert main(["baselines", "record", "--dry-run", "--model", "some/model", *options]) == 0
        return shlex.split(capsys.readouterr().out)

    return call


def test_a_public_suite_is_recorded_by_the_suites_of_its_capabilities(told: Told) -> None:
    words = told("--suite", "scbench", "--data", ROWS)
    assert words[:2] == ["pytest", "--pyargs"]
    assert [word for word in words if word.startswith("kvcheck.suites")] == [
        f"kvcheck.suites.test_{name}"
        for name in ("string_retrieval", "semantic_retrieval", "global_information", "multi_task")
    ]
    assert {"--kv-tasks=scbench", "--kv-method=fp16", "--kv-model=some/model", "--kv-record=new"} <= set(words)


def test_a_capability_stands_for_its_tasks(told: Told) -> None:
    assert "--kv-tasks=needle,needle_64,needle_multi" in told("--suite", "needle")


def test_all_are_the_generated_tasks(told: Told) -> None:
    assert f"--kv-tasks={','.join(TASKS.names())}" in told("--suite", "all")


def test_suites_and_single_tasks_can_be_joined(told: Told) -> None:
    assert "--kv-tasks=ruler,longbench/qasper,kv" in told("--suite", "ruler,longbench/qasper,kv", "--data", ROWS)


def test_methods_can_be_joined_by_commas_that_are_not_their_own(told: Told) -> None:
    words = told("--suite", "kv", "--method", "fp16,snapkv:budget=0.25,window=32", "--method", "kivi")
    methods = [word for word in words if word.startswith("--kv-method")]
    assert methods == ["--kv-method=fp16", "--kv-method=snapkv:budget=0.25,window=32", "--kv-method=kivi"]


def test_options_are_those_of_pytest_without_their_prefix(told: Told) -> None:
    options = ("--lengths=512", "--n=4", "--modes=single", "--record=all", "--strict", "--query-aware=no", "--to=own")
    words = told("--suite", "kv", *options, "--budget", "drop=3", "--", "-n", "2")
    wanted = {"--kv-lengths=512", "--kv-n=4", "--kv-modes=single", "--kv-record=all", "--kv-strict"}
    assert wanted | {"--kv-query-aware=no", "--kv-baselines=own", "--kv-budget=drop=3"} <= set(words)
    assert words[-2:] == ["-n", "2"]


def test_the_place_of_the_rows_may_stand_in_the_projects_table(told: Told, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f'[tool.kvcheck]\ndata = "{ROWS}"\n')
    assert "--kv-tasks=scbench/kv" in told("--suite", "scbench/kv")


def test_a_bad_value_of_the_projects_table_is_named_as_one(
    tmp_path: Path, told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.kvcheck]\nalpha = 7\n")
    assert main(["baselines", "record", "--model=mini", "--suite=kv", "--dry-run"]) == 2
    assert "[tool.kvcheck] alpha" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--suite=scbnch",), "--suite: unknown suite 'scbnch'\n  did you mean scbench?"),
        (("--suite=scbench/kvv",), "did you mean scbench/kv"),
        (("--suite=string_retreival",), "did you mean string_retrieval or semantic_retrieval?"),
        (("--suite=scbench",), "say where: --data hub or --data FOLDER"),
        (("--suite=scbench", "--data=nowhere"), "--data: there is no folder nowhere"),
        (("--suite=kv", "--model=minni"), "--model: unknown model 'minni'\n  did you mean mini?"),
        (("--suite=kv", "--model=/no/such/model"), "--model: there is no folder /no/such/model"),
        (("--suite=kv", "--model=random:tiny"), "random weights"),
        (("--suite=kv", "--method=snapkw"), "--method: unknown method 'snapkw'\n  did you mean snapkv?"),
        (("--suite=kv", "--record=chnaged"), "--record: unknown value 'chnaged'\n  did you mean changed?"),
        (("--suite=kv", "--n=none"), "--n: not a number"),
        (("--suite=path_trace", "--modes=multi_turn"), "--modes: no task of the suite runs in multi_turn"),
        (("--suite=kv", "--to=memory://team/kv"), "kvcheck baselines push --from FOLDER --to memory://team/kv"),
    ],
)
def test_a_bad_name_is_refused_with_what_was_meant(
    options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["baselines", "record", "--model", "some/model", *options, "--dry-run"]) == 2
    assert words in capsys.readouterr().err


def test_a_dry_run_in_ci_is_refused_as_the_recording_would_be(
    told: Told, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", "true")
    assert main(["baselines", "record", "--model=mini", "--suite=kv", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "--record=new is off where CI is set" in said
    assert "add --record-in-ci" in said
    assert "--kv-record-in-ci" in told("--suite", "kv", "--record-in-ci")


def test_names_are_checked_without_torch(tmp_path: Path) -> None:
    command = ["baselines", "record", "--model=some/model", "--suite=all", "--method=snapkv", "--dry-run"]
    code = f"import sys; from kvcheck.cli.commands import main; main({command}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
