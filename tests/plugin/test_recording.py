"""--kv-record writes baselines on request, shows what changed, and touches nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SUITE = "kvcheck.suites.test_string_retrieval"
Run = Callable[..., pytest.RunResult]
Behave = Callable[[dict[str, Any]], None]


def stored(repo: pytest.Pytester) -> dict[str, str]:
    """The baseline files by name."""
    return {path.name: path.read_text("utf-8") for path in sorted(Path(repo.path).glob("stored/*/*.txt"))}


def test_recording_writes_on_the_controller_once(run: Run, repo: pytest.Pytester, dist: tuple[str, ...]) -> None:
    result = run("--kv-method=fp16", "--kv-record=new", *dist)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*recorded 3 cases of fp16 in stored/fake/fp16.txt*"])
    assert list(stored(repo)) == ["fp16.txt"]


def test_without_the_option_nothing_is_written(recorded: Run, repo: pytest.Pytester, behave: Behave) -> None:
    before = stored(repo)
    behave({"fp16": 0.5})
    recorded("--kv-method=fp16", "--kv-method=snapkv")
    assert stored(repo) == before


def test_a_second_run_is_compared_with_what_was_recorded(recorded: Run, behave: Behave, repo: pytest.Pytester) -> None:
    behave({"snapkv": 1.0})
    recorded("--kv-method=snapkv", "--kv-record=new", "--kv-budget=drop=100").assert_outcomes(passed=3)
    recorded("--kv-method=snapkv", "--kv-budget=drop=100").assert_outcomes(passed=3)
    behave({"snapkv": 0.0})
    options = ("--kv-method=snapkv", "--kv-budget=drop=100", "--kv-alpha=0.5")
    worse = recorded(*options)
    assert worse.parseoutcomes()["failed"] >= 1
    worse.stdout.fnmatch_lines(["*accuracy drop against its own record*", "*--kv-record=changed*"])
    recorded(*options, "--kv-record=changed").assert_outcomes(passed=3)
    recorded(*options).assert_outcomes(passed=3)


def test_new_leaves_recorded_cases_as_they_are(recorded: Run, repo: pytest.Pytester, behave: Behave) -> None:
    before = stored(repo)
    behave({"fp16": 0.5})
    result = recorded("--kv-method=fp16", "--kv-record=new")
    result.stdout.fnmatch_lines(["*nothing to record for fp16*"])
    assert stored(repo) == before


def test_a_method_that_broke_is_not_recorded(recorded: Run, repo: pytest.Pytester, behave: Behave) -> None:
    behave({"snapkv": "raise"})
    recorded("--kv-method=snapkv", "--kv-record=new").assert_outcomes(failed=3)
    assert list(stored(repo)) == ["fp16.txt"]


def test_a_method_over_its_budget_fails_and_is_recorded(recorded: Run, repo: pytest.Pytester, behave: Behave) -> None:
    behave({"snapkv": 0.0})
    recorded("--kv-method=snapkv", "--kv-record=new", "--kv-alpha=0.5").assert_outcomes(failed=4)
    assert list(stored(repo)) == ["fp16.txt", "snapkv.txt"]


def test_a_damaged_baseline_is_refused_by_name_and_left_as_it_is(recorded: Run, repo: pytest.Pytester) -> None:
    path = repo.path / "stored" / "fake" / "fp16.txt"
    path.write_text(path.read_text("utf-8")[:-40], "utf-8")
    damaged = stored(repo)
    result = recorded("--kv-method=snapkv", "--kv-modes=single")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*stored/fake/fp16.txt*"])
    recorded("--kv-method=fp16", "--kv-record=all")
    assert stored(repo) == damaged


@pytest.mark.parametrize("place", [("--kv-baselines=stored",), ()], ids=["named", "default"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    repo: pytest.Pytester, place: tuple[str, ...]
) -> None:
    for name in ("stored", ".kvcheck"):
        shutil.rmtree(repo.path / name, ignore_errors=True)
        (repo.path / name).write_text("a file, not a folder")
    result = repo.runpytest("--pyargs", SUITE, "--kv-method=fp16", "--kv-record=new", *place)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*cannot be written: Not a directory", "*name another place"])
    assert not (repo.path / "ran.txt").exists()


def test_a_place_that_cannot_be_written_in_the_end_is_said_and_the_results_are_kept(
    run: Run, repo: pytest.Pytester
) -> None:
    conftest = repo.path / "conftest.py"
    late = "def pytest_sessionfinish():\n    (HERE / 'stored' / 'fake').write_text('a file, not a folder')\n"
    conftest.write_text(f"{conftest.read_text('utf-8')}\n\n{late}", "utf-8")
    result = run("--kv-method=fp16", "--kv-record=new", "--kv-json=run.json", "--kv-modes=single")
    result.stdout.fnmatch_lines(["*baselines could not be recorded*", "*--kv-resume=run.json records it*"])
    assert (repo.path / "run.json").exists()
    assert result.ret != 0


def test_a_lossy_method_is_recorded_and_gated_by_itself(run: Run, behave: Behave, repo: pytest.Pytester) -> None:
    behave({"snapkv": 0.9})
    alone = ("--kv-method=snapkv", "--kv-against=self")
    run(*alone, "--kv-record=new").assert_outcomes(passed=3)
    run(*alone).assert_outcomes(passed=3)
    behave({"snapkv": 0.0})
    assert run(*alone).ret == pytest.ExitCode.TESTS_FAILED
    run(*alone, "--kv-record=changed").assert_outcomes(passed=3)
    run(*alone).assert_outcomes(passed=3)


OLD = {"fed": "a" * 12, "inputs": {"beginning": "token 0", "tokenizers": "0.21.4"}}
NEW = {"fed": "b" * 12, "inputs": {"beginning": "token 0", "tokenizers": "0.23.1"}}


@pytest.mark.parametrize("own", [(), ("--kv-method=snapkv",)], ids=["fp16", "fp16 and snapkv"])
def test_what_was_recorded_with_other_token_ids_is_not_compared_and_the_package_is_named(
    run: Run, behave: Behave, own: tuple[str, ...]
) -> None:
    one = ("--kv-modes=single", "--kv-n=8")
    behave(OLD)
    run("--kv-method=fp16", *own, "--kv-record=new", *one).assert_outcomes(passed=1 + len(own))
    run("--kv-method=snapkv", *one).assert_outcomes(passed=1)
    behave(NEW)
    result = run("--kv-method=snapkv", *one)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            f"*the record of {'snapkv' if own else 'fp16'} for kv/v1/single/len=512/seed=0 has other token ids in "
            "sample 0: tokenizers 0.21.4 there and 0.23.1 here*",
            "*record it again: * --kv-record=changed*",
        ]
    )
    run("--kv-method=fp16", *own, "--kv-record=changed", *one).assert_outcomes(passed=1 + len(own))
    run("--kv-method=snapkv", *one).assert_outcomes(passed=1)


def test_a_method_with_a_record_of_its_own_is_not_shown_beside_an_fp16_of_other_token_ids(
    run: Run, behave: Behave
) -> None:
    one = ("--kv-modes=single", "--kv-n=8")
    behave(OLD)
    run("--kv-method=fp16", "--kv-record=new", *one)
    behave(NEW)
    run("--kv-method=snapkv", "--kv-record=new", "--kv-against=self", *one)
    result = run("--kv-method=snapkv", *one)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*the record of fp16 * has other token ids*tokenizers 0.21.4 there and 0.23.1 here*"])
    result.stdout.no_fnmatch_line("*1.000 -> 1.000*")
